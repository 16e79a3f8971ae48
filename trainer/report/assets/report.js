"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const charts = data.charts.map((chart) => ({ ...chart, view: null, pending: null, hiddenParts: new Set() }));
const hiddenRuns = new Set(), hiddenParts = new Set();
const darkScheme = window.matchMedia("(prefers-color-scheme: dark)");

// ---- drawing: a chart is drawn when it comes near the window, all of them before printing

async function draw(chart, element) {
  if (chart.pending === null) {
    chart.pending = (async () => {
      // Before it is drawn, so that it is drawn once.
      const plot = chart.figure.doc.roots[0].attributes;
      for (const axis of [...plot.below, ...plot.left]) Object.assign(axis.attributes, colors(darkScheme.matches).axis);
      for (const grid of plot.center) Object.assign(grid.attributes, colors(darkScheme.matches).grid);
      const views = await Bokeh.embed.embed_item(chart.figure, element);
      chart.view = [...views.roots][0];
      chart.figure = null;
      chart.view.model.toolbar.tools.forEach((tool) => { if (tool.type === "HoverTool") tool.tooltips = (source, at) => tip(chart, source, at); });
      applyVisibility(chart);
      reportDrawn();
    })();
  }
  return chart.pending;
}

// How far the page is, for tests: charts drawn, and milliseconds since it was asked for.
function reportDrawn() {
  const facts = document.documentElement.dataset, drawn = charts.filter((one) => one.view !== null).length;
  facts.charts = String(drawn);
  requestAnimationFrame(() => {
    const inWindow = plots.filter((element) => element.getBoundingClientRect().top < innerHeight);
    const done = (elements) => elements.every((element) => charts[Number(element.dataset.chart)].view !== null);
    if (done(inWindow)) facts.firstMs ??= String(performance.now());
    if (done(plots)) facts.drawnMs ??= String(performance.now());
  });
}

function tip(chart, source, at) {
  const box = document.createElement("div"), name = document.createElement("b");
  box.className = "tip";
  const index = at.index ?? at.line_index;
  name.textContent = chart.lines[Number(at.name)].label;
  const value = source.data.y[index];
  const shown = chart.stacked ? `${(100 * value).toFixed(1)} %` : String(Number(value.toPrecision(5)));
  box.append(name, `${shown} at step ${source.data.x[index].toLocaleString("en")}`);
  // Bokeh draws tooltips in a shadow root, which the page's style sheet does not reach.
  box.style.fontSize = "12px";
  name.style.display = "block";
  return box;
}

function colors(dark) {
  const [text, line, grid] = dark ? ["#9aa4b2", "#4a5462", "#2d3541"] : ["#5d6675", "#b4bbc6", "#e6e9ee"];
  return { axis: { major_label_text_color: text, axis_line_color: line, major_tick_line_color: line }, grid: { grid_line_color: grid } };
}
function applyColors(chart, dark) {
  const plot = chart.view.model;
  for (const axis of [...plot.below, ...plot.left]) axis.setv(colors(dark).axis);
  for (const grid of plot.center) grid.setv(colors(dark).grid);
}

function applyVisibility(chart) {
  for (const renderer of chart.view.model.renderers) {
    const { run, part } = chart.lines[Number(renderer.name)];
    const visible = !(hiddenRuns.has(run) || hiddenParts.has(part) || chart.hiddenParts.has(part));
    if (renderer.visible !== visible) renderer.visible = visible;
  }
}

const plots = [...document.querySelectorAll(".plot")];
const drawPlot = (element) => draw(charts[Number(element.dataset.chart)], element);
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { observer.unobserve(entry.target); drawPlot(entry.target); }
}, { rootMargin: "400px" });
plots.forEach((element) => observer.observe(element));
darkScheme.addEventListener("change", () => charts.forEach((chart) => { if (chart.view) applyColors(chart, darkScheme.matches); }));

// ---- choosing what is visible

function toggle(button, set, key) {
  const shown = button.getAttribute("aria-pressed") === "true";
  button.setAttribute("aria-pressed", String(!shown));
  if (shown) set.add(key); else set.delete(key);
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[aria-pressed]");
  if (button === null) return;
  const { run, part, chart } = button.dataset;
  if (chart !== undefined) toggle(button, charts[Number(chart)].hiddenParts, part);
  else if (run !== undefined) toggle(button, hiddenRuns, Number(run));
  else toggle(button, hiddenParts, part);
  charts.forEach((one) => { if (one.view) applyVisibility(one); });
});
for (const slider of document.querySelectorAll(".album input")) {
  slider.addEventListener("input", () => {
    const album = slider.closest(".album"), pictures = album.querySelectorAll("img");
    pictures.forEach((picture, number) => { picture.hidden = number !== Number(slider.value); });
    album.querySelector("output").textContent = pictures[Number(slider.value)].dataset.caption;
  });
}

// ---- printing: canvases do not follow the width of the paper, pictures of them do

async function drawAll() { await Promise.all(plots.map(drawPlot)); }
function addPictures() {
  document.querySelectorAll("details").forEach((one) => { one.dataset.open = String(one.open); one.open = true; });
  for (const element of plots) {
    const chart = charts[Number(element.dataset.chart)];
    if (chart.view === null) continue;
    applyColors(chart, false);
    const picture = new Image();
    picture.src = chart.view.export("png", true).canvas.toDataURL("image/png");
    element.append(picture);
    applyColors(chart, darkScheme.matches);
  }
}
function removePictures() {
  document.querySelectorAll("details").forEach((one) => { one.open = one.dataset.open === "true"; });
  document.querySelectorAll(".plot > img").forEach((picture) => picture.remove());
}
window.addEventListener("beforeprint", addPictures);
window.addEventListener("afterprint", removePictures);
// What is below the fold is drawn after what is in the window, a chart at a time: printing cannot wait for it.
const pause = (delayMs) => new Promise((then) => setTimeout(then, delayMs));
window.addEventListener("load", async () => {
  for (const element of plots) {
    await pause(0);
    await drawPlot(element);
  }
});

// ---- live: new points replace the data of the charts, anything else reloads the page

function replaceData(chart, lines) {
  const numbers = (values) => Float64Array.from(values, (value) => value ?? NaN);
  for (const renderer of chart.view.model.renderers) {
    const columns = lines[Number(renderer.name)];
    renderer.data_source.data = Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, numbers(values)]));
  }
}
async function poll(live) {
  let version = "";
  const badge = document.getElementById("live");
  for (;;) {
    try {
      const answer = await fetch(live.url, { headers: { "If-None-Match": version }, cache: "no-store" });
      badge.classList.toggle("lost", !(answer.ok || answer.status === 304));
      if (answer.ok) {
        version = answer.headers.get("ETag");
        const update = await answer.json();
        if (update.signature !== live.signature) { location.reload(); return; }
        charts.forEach((chart, index) => { if (chart.view) replaceData(chart, update.charts[index]); });
        update.figures.forEach(({ value, note }, index) => {
          const card = document.querySelectorAll(".figure")[index];
          card.querySelector(".value").textContent = value;
          card.querySelector(".detail").textContent = note;
        });
        document.documentElement.dataset.step = String(update.last_step);
      }
    } catch (problem) {
      if (!(problem instanceof TypeError)) throw problem;
      badge.classList.add("lost");  // the server is gone; it may come back
    }
    await pause(500);
  }
}
if (data.live !== null) drawAll().then(() => poll(data.live));
