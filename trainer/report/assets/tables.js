// Click a heading to sort by it; cells may carry the value behind their text in data-value.
"use strict";
function cellValue(row, column) {
  const cell = row.cells[column];
  if (cell === undefined) return "";
  const text = cell.dataset.value ?? cell.textContent.trim();
  const number = Number(text.replaceAll(",", ""));
  return text !== "" && !Number.isNaN(number) ? number : text;
}
function sortTable(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row, place) => ({ row, place, value: cellValue(row, column) }));
  rows.sort((a, b) => {
    // Rows without a value come last in both orders.
    if ((a.value === "") !== (b.value === "")) return a.value === "" ? 1 : -1;
    const both = typeof a.value === "number" && typeof b.value === "number";
    const order = both ? a.value - b.value : String(a.value).localeCompare(String(b.value), undefined, { numeric: true });
    return (descending ? -order : order) || a.place - b.place;
  });
  body.append(...rows.map(({ row }) => row));
  for (const heading of table.tHead.rows[0].cells) heading.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
}
for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", (event) => {
    const heading = event.target.closest("th");
    if (heading === null) return;
    sortTable(table, heading.cellIndex, heading.getAttribute("aria-sort") === "ascending");
  });
}
