"use strict";
// Draws the history of a sensor with uPlot in place of the SVG of the server: one plot for each quantity, with one axis
// of time, a common cursor, and the gaps and incidents shaded. Dragging zooms in, a double click zooms out.
const place = document.getElementById("plots");
const dark = matchMedia("(prefers-color-scheme: dark)");
let drawn = [];

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const shade = (spans) => (u) => {
  for (const { start, end, kind } of spans) {
    const left = u.valToPos(Math.max(start, u.scales.x.min), "x", true);
    const right = u.valToPos(Math.min(end, u.scales.x.max), "x", true);
    if (right < left) continue;
    u.ctx.fillStyle = color(kind);
    u.ctx.fillRect(left, u.bbox.top, Math.max(devicePixelRatio, right - left), u.bbox.height);
  }
};

const number = (plot) => (value) => {
  if (value == null) return "–";
  if (plot.states) return plot.states[value > 0 ? 1 : 0];
  return `${value.toLocaleString("en", { minimumFractionDigits: plot.decimals, maximumFractionDigits: plot.decimals })} ${plot.unit}`;
};

const options = (plot, history, width, last) => {
  const axis = { stroke: color("soft"), font: "12px system-ui, sans-serif", grid: { stroke: color("line"), width: 1 }, ticks: { show: false } };
  const line = { stroke: color("accent"), width: 1.6, points: { show: plot.kind === "marks", size: 7, fill: color("accent") }, value: (u, value) => number(plot)(value) };
  if (plot.kind === "steps") line.paths = uPlot.paths.stepped({ align: 1 });
  if (plot.kind === "marks") line.paths = () => null;
  const edge = { stroke: "transparent", width: 0, points: { show: false }, value: line.value };
  const series = [{ label: "UTC", value: "{YYYY}-{MM}-{DD} {HH}:{mm}" }, { ...line, label: history.hourly && plot.kind === "line" ? "Mean" : plot.title }];
  if (plot.low && plot.kind === "line") series.push({ ...edge, label: "Minimum" }, { ...edge, label: "Maximum" });
  return {
    width,
    height: last ? 168 : 140,
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
    cursor: { sync: { key: "history" }, points: { size: 7 } },
    scales: {
      x: { range: (u, min, max) => (min === null ? [history.start, history.end] : [min, max]) },
      y: plot.states ? { range: [-0.15, 1.15] } : {},
    },
    axes: [
      { ...axis, show: last },
      { ...axis, size: 66, splits: plot.states ? () => [0, 1] : undefined, values: plot.states ? () => plot.states : undefined },
    ],
    series,
    bands: series.length > 2 ? [{ series: [3, 2], fill: color("band") }] : [],
    hooks: { drawClear: [shade(history.spans)] },
  };
};

const draw = (history) => {
  const figures = history.plots.map((plot, n) => {
    const figure = document.createElement("figure");
    const caption = figure.appendChild(document.createElement("figcaption"));
    caption.textContent = plot.title;
    const box = figure.appendChild(document.createElement("div"));
    return { plot, figure, box, last: n === history.plots.length - 1 };
  });
  for (const each of drawn) each.destroy();
  place.replaceChildren(...figures.map((each) => each.figure));
  const width = place.clientWidth;
  drawn = figures.map(({ plot, box, last }) => {
    const values = plot.low && plot.kind === "line" ? [plot.mean, plot.low, plot.high] : [plot.mean];
    const made = new uPlot(options(plot, history, width, last), [plot.times, ...values], box);
    made.setScale("x", { min: history.start, max: history.end });
    return made;
  });
};

const load = async () => {
  const response = await fetch(place.dataset.source, { headers: { "X-Refresh": "1" } });
  if (response.ok) return response.json();
  throw new Error(response.statusText);
};

const show = async () => {
  try {
    const history = await load();
    if (!history.plots.length) return;
    draw(history);
    dark.onchange = () => draw(history);
  } catch {} // what the server has drawn stays
};

const heard = () => document.querySelector("#now .lead time")?.dateTime;
let drawnAt = heard();
document.addEventListener("refreshed", () => {
  if (heard() === drawnAt) return;
  drawnAt = heard();
  show();
});
new ResizeObserver(() => drawn.forEach((each) => each.setSize({ width: place.clientWidth, height: each.height }))).observe(place);
show();
