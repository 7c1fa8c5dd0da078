"use strict";
// Draws the history of a sensor with uPlot in place of the SVG of the server: a plot for each quantity, with one axis of
// time, a common cursor, and gaps and incidents shaded. Dragging zooms in, a double click zooms out.
const place = document.getElementById("plots");
const dark = matchMedia("(prefers-color-scheme: dark)");
const utc = (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC");
const clock = uPlot.fmtDate("{YYYY}-{MM}-{DD} {HH}:{mm}");
const day = "\n{D} {MMM}";
const times = [
  [86400, "{D} {MMM}", "\n{YYYY}", null, null, null, null, null, 1],
  [60, "{HH}:{mm}", day, null, day, null, null, null, 1],
];
let drawn = [];
let whole;

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const text = (plot, value) => {
  if (plot.states) return plot.states[value > 0 ? 1 : 0];
  const digits = { minimumFractionDigits: plot.decimals, maximumFractionDigits: plot.decimals };
  const rounded = Number(value.toFixed(plot.decimals)) + 0; // no negative zero
  return `${rounded.toLocaleString("en", digits)} ${plot.unit}`.trim();
};

const describe = (plot, u) => {
  const n = u.cursor.idx;
  if (n == null || plot.mean[n] == null) return plot.summary;
  const band = plot.low && plot.low[n] < plot.high[n] ? ` (${text(plot, plot.low[n])} to ${text(plot, plot.high[n])})` : "";
  return `${clock(utc(plot.times[n]))} · ${text(plot, plot.mean[n])}${band}`;
};

const shade = (spans) => (u) => {
  for (const { start, end, kind } of spans) {
    const left = u.valToPos(Math.max(start, u.scales.x.min), "x", true);
    const right = u.valToPos(Math.min(end, u.scales.x.max), "x", true);
    if (right < left) continue;
    u.ctx.fillStyle = color(kind);
    u.ctx.fillRect(left, u.bbox.top, Math.max(devicePixelRatio, right - left), u.bbox.height);
  }
};

const padded = (u, low, high) => {
  const pad = (high - low) / 10 || 1;
  return low === null ? [0, 1] : [low - pad, high + pad];
};

const alone = (u, n, all) => {
  const values = u.data[n]; // a line goes through the others
  return all ? null : [...values.keys()].filter((i) => values[i] != null && values[i - 1] == null && values[i + 1] == null);
};

const options = (plot, history, width, last, note) => {
  const grid = { stroke: color("line"), width: 1 };
  const axis = { stroke: color("soft"), font: "12px system-ui, sans-serif", grid, ticks: { show: false } };
  const few = plot.kind === "marks" || plot.times.length < 20;
  const line = { stroke: color("accent"), width: 1.6, points: { show: few, filter: alone, size: 5, fill: color("accent") } };
  if (plot.kind === "steps") Object.assign(line, { paths: uPlot.paths.stepped({ align: 1 }), fill: color("band"), points: { show: false } });
  if (plot.kind === "marks") line.paths = () => null;
  const edge = { stroke: "transparent", points: { show: false } };
  const words = plot.states && { splits: () => [0, 1], values: () => plot.states };
  return {
    width,
    height: last ? 150 : 112,
    padding: [10, 20, last ? 0 : 10, 0],
    legend: { show: false },
    tzDate: utc,
    cursor: { sync: { key: "history" }, points: { size: 7 }, y: false },
    scales: { x: {}, y: { range: plot.states ? [-0.15, 1.15] : padded } },
    axes: [last ? { ...axis, size: 40, values: times } : { ...axis, size: 0, values: () => [] }, { ...axis, size: history.margin, ...words }],
    series: [{}, line, ...(plot.low ? [edge, edge] : [])],
    bands: plot.low ? [{ series: [3, 2], fill: color("band") }] : [],
    hooks: { drawClear: [shade(history.spans)], setCursor: [(u) => (note.textContent = describe(plot, u))] },
  };
};

const zoomed = (history) => {
  const x = drawn[0]?.scales.x;
  return x && (x.min > whole.min || x.max < whole.max) && x.max > history.start && { min: x.min, max: x.max };
};

const draw = (history) => {
  history.margin = history.plots.some((plot) => plot.states) ? 76 : 52; // the same for all, since time is
  const zoom = zoomed(history);
  whole = { min: history.start, max: history.end };
  for (const each of drawn) each.destroy();
  place.replaceChildren();
  drawn = history.plots.map((plot, n) => {
    const figure = place.appendChild(document.createElement("figure"));
    const caption = figure.appendChild(document.createElement("figcaption"));
    caption.textContent = plot.title;
    const note = caption.appendChild(document.createElement("small"));
    note.textContent = plot.summary;
    const last = n === history.plots.length - 1;
    const values = [plot.times, plot.mean, ...(plot.low ? [plot.low, plot.high] : [])];
    const made = new uPlot(options(plot, history, place.clientWidth, last, note), values, figure);
    made.setScale("x", zoom || whole);
    made.over.ondblclick = () => drawn.forEach((each) => each.setScale("x", whole));
    return made;
  });
};

const show = async () => {
  try {
    const response = await fetch(place.dataset.source, { headers: { "X-Refresh": "1" } });
    const history = response.ok ? await response.json() : { plots: [] };
    if (!history.plots.length) return; // what the server has drawn stays
    draw(history);
    dark.onchange = () => draw(history);
  } catch {}
};

const heard = () => document.querySelector("#now .lead time")?.dateTime;
let heardAt = heard();
document.addEventListener("refreshed", () => {
  if (heard() === heardAt) return;
  heardAt = heard();
  show();
});
new ResizeObserver(() => drawn.forEach((each) => each.setSize({ width: place.clientWidth, height: each.height }))).observe(place);
show();
