"use strict";
const table = document.getElementById("runs"), body = table.tBodies[0];
const filter = document.getElementById("filter"), compare = document.getElementById("compare");
const rows = new Map(), chosen = new Set();

const shown = (value) => value === null || value === undefined ? "–" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
function ago(seconds) {
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([size]) => seconds >= size) ?? [1, "s"];
  return `${Math.max(0, Math.floor(seconds / size))} ${unit} ago`;
}
const reportUrl = (names) => `/report?${new URLSearchParams(names.map((name) => ["run", name]))}`;

function newRow(name) {
  const row = body.insertRow();
  for (const heading of table.tHead.rows[0].cells) row.insertCell().className = heading.className;
  const tick = document.createElement("input");
  tick.type = "checkbox";
  tick.setAttribute("aria-label", `choose ${name}`);
  tick.addEventListener("change", () => { if (tick.checked) chosen.add(name); else chosen.delete(name); showChosen(); });
  const link = document.createElement("a");
  link.href = reportUrl([name]);
  link.textContent = name;
  row.cells[0].append(tick);
  row.cells[1].append(link);
  rows.set(name, row);
  return row;
}
// Text from files becomes text nodes only.
function fill(row, run) {
  const status = document.createElement("span");
  status.className = `status ${run.status}`;
  status.textContent = run.status;
  status.title = run.problem ?? "";
  row.cells[2].replaceChildren(status);
  const texts = [run.task, run.model, run.data].map((value) => value ?? "");
  texts.forEach((text, number) => { row.cells[3 + number].textContent = text; });
  const figures = [[run.step, shown(run.step)], [run.best, `${shown(run.best)} ${run.best == null ? "" : run.monitor}`], [run.loss, shown(run.loss)], [run.samples_per_s, shown(run.samples_per_s)]];
  figures.forEach(([value, text], number) => { row.cells[6 + number].textContent = text; row.cells[6 + number].dataset.value = value ?? ""; });
  row.cells[10].textContent = run.start ? run.start.slice(0, 19).replace("T", " ") : "–";
  row.cells[11].textContent = run.written ? ago(Date.now() / 1000 - run.written) : "–";
  row.cells[11].dataset.value = run.written ?? "";
}
function showChosen() {
  compare.disabled = chosen.size < 2;
  compare.textContent = chosen.size < 2 ? "compare" : `compare ${chosen.size} runs`;
}
function applyFilter() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const row of rows.values()) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    count += row.hidden ? 0 : 1;
  }
  document.getElementById("count").textContent = `${count} of ${rows.size} runs`;
}
function update(runs) {
  const names = new Set(runs.map(({ run }) => run));
  for (const [name, row] of rows) if (!names.has(name)) { row.remove(); rows.delete(name); chosen.delete(name); }
  for (const run of runs) fill(rows.get(run.run) ?? newRow(run.run), run);
  const sorted = table.tHead.querySelector("th[aria-sort]");
  if (sorted !== null) sortTable(table, sorted.cellIndex, sorted.getAttribute("aria-sort") === "descending");
  applyFilter();
  showChosen();
}
async function poll() {
  const badge = document.getElementById("live");
  let latest = [];
  for (let version = ""; ;) {
    try {
      const answer = await fetch("/api/runs", { headers: { "If-None-Match": version }, cache: "no-store" });
      badge.classList.toggle("lost", !(answer.ok || answer.status === 304));
      if (answer.ok) { version = answer.headers.get("ETag"); latest = await answer.json(); }
      update(latest);
    } catch (problem) {
      if (!(problem instanceof TypeError)) throw problem;
      badge.classList.add("lost");  // the server is gone; it may come back
    }
    await new Promise((then) => setTimeout(then, 1000));
  }
}
filter.addEventListener("input", applyFilter);
compare.addEventListener("click", () => { location.href = reportUrl([...chosen].sort()); });
if (table.tHead.querySelector("th[aria-sort]") === null) table.tHead.rows[0].cells[11].setAttribute("aria-sort", "descending");
poll();
