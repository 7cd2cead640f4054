// Curves over optimizer steps, as SVG: several on one pair of axes, one cursor for all plots of a board, values read
// aloud and listed in a table, smoothing, logarithmic axes, and a part of the steps enlarged.

import { clamp, compact, element, format, logTicks, nearest, smoothed, svg, ticks } from "./scales.js";

const HEIGHT = 190;
const MARGIN = { top: 12, right: 10, bottom: 24, left: 48 };
const LABEL_HEIGHT = 11;
const LABEL_WIDTH = 34; // for the names at the ends of curves, where there are several runs
const SMOOTH_STEPS = 12; // a curve of so few steps is shown as it is
const SMOOTHING = { none: () => 0, some: (n) => clamp(1 - SMOOTH_STEPS / n, 0, 0.9), much: () => 0.97 };
const MIN_ZOOM = 2; // steps
const TABLE_ROWS = 60;

// --- a board: plots that share a cursor and their switches -----------------------------------------------------------

/** All plots of a page. `root` holds the switches (data-plot-…), the words (data-…), and [data-plots] for the figures. */
export class Board {
  constructor(root) {
    this.root = root;
    this.words = root.dataset;
    this.plots = new Map();
    this.alarms = new Map(); // step → sentences
    this.range = null; // [first, last] step while a part is enlarged
    this.smoothing = remembered("al-smoothing", "some", SMOOTHING);
    this.isLog = remembered("al-log", "no", { yes: 1, no: 1 }) === "yes";
    this.listen();
  }

  listen() {
    const smoothing = this.root.querySelector("[data-plot-smoothing]");
    smoothing.value = this.smoothing;
    smoothing.addEventListener("change", () => this.change("al-smoothing", (this.smoothing = smoothing.value)));
    const log = this.root.querySelector("[data-plot-log]");
    log.checked = this.isLog;
    log.addEventListener("change", () => {
      this.isLog = log.checked;
      this.change("al-log", log.checked ? "yes" : "no");
    });
    this.reset = this.root.querySelector("[data-plot-reset]");
    this.reset.addEventListener("click", () => this.zoom(null));
  }

  change(name, value) {
    localStorage.setItem(name, value);
    this.draw();
  }

  /** Shows charts as curves.json describes them; `run` {key, name, label} tells its curves from those of other runs. */
  show(charts, run = { key: "", name: "" }) {
    for (const chart of charts) {
      this.plot(chart).chart = chart; // a curve may have come to it
      for (const curve of chart.curves) this.plot(chart).set(curve, run);
    }
    this.draw();
  }

  /** Further metric lines of a run. */
  add(lines, run = { key: "", name: "" }) {
    for (const plot of this.plots.values()) plot.add(lines, run);
    this.draw();
  }

  plot(chart) {
    if (!this.plots.has(chart.key)) {
      const plot = new Plot(this, chart);
      this.plots.set(chart.key, plot);
      this.root.querySelector("[data-plots]").append(plot.figure);
      this.root.hidden = false;
    }
    return this.plots.get(chart.key);
  }

  draw() {
    this.root.hidden = !this.plots.size;
    for (const plot of this.plots.values()) plot.draw();
  }

  /** Of all plots, so that they stand on the same axis. */
  lastStep() {
    const lines = [...this.plots.values()].flatMap((plot) => plot.lines.filter((line) => !line.isHidden));
    return lines.reduce((last, line) => Math.max(last, line.lastStep ?? 0), 1);
  }

  mark(alarms) {
    for (const { step, message } of alarms) this.alarms.set(step, [...(this.alarms.get(step) ?? []), message]);
  }

  /** Every plot shows its values at a step; null: its newest ones. */
  point(step) {
    for (const plot of this.plots.values()) plot.point(step);
  }

  zoom(range) {
    this.range = range && range[1] - range[0] >= MIN_ZOOM ? range : null;
    this.reset.hidden = !this.range;
    this.draw();
  }

  /** Shows or hides all curves of a run. */
  toggle(key, isShown) {
    for (const plot of this.plots.values()) for (const line of plot.lines) if (line.run.key === key) line.isHidden = !isShown;
    this.draw();
  }
}

function remembered(name, otherwise, allowed) {
  const value = localStorage.getItem(name);
  return value in allowed ? value : otherwise;
}

// --- one plot --------------------------------------------------------------------------------------------------------

class Plot {
  constructor(board, chart) {
    [this.board, this.chart] = [board, chart];
    this.lines = [];
    this.build();
    new ResizeObserver(() => this.draw()).observe(this.area);
  }

  build() {
    this.figure = element("figure", { class: "al-panel al-plot", "data-plot": this.chart.key });
    const caption = element("figcaption", {});
    const title = element("h3", { id: `plot-${this.chart.key}` }, this.chart.title);
    this.output = element("output", {});
    caption.append(title, this.output);
    // A slider over the steps: arrow keys move the cursor, and the values are read where it stands.
    this.area = element("div", { class: "al-plot-area", role: "slider", tabindex: 0, "aria-labelledby": title.id });
    this.svg = svg("svg", { height: HEIGHT, "aria-hidden": "true" });
    this.area.append(this.svg);
    this.legend = element("ul", { class: "al-legend" });
    this.figure.append(caption, this.area, this.legend, this.buildTable());
    this.listen();
  }

  buildTable() {
    const details = element("details", { class: "al-plot-table" });
    const summary = element("summary", {}, this.board.words.table);
    this.table = element("div", { class: "al-scroll", tabindex: 0, role: "group", "aria-label": this.chart.title });
    details.append(summary, this.table);
    details.addEventListener("toggle", () => this.fillTable());
    this.details = details;
    return details;
  }

  set(curve, run) {
    let line = this.find(curve.key, run);
    if (!line) {
      line = { key: curve.key, words: curve.words, run, points: new Map() };
      this.lines.push(line);
    }
    curve.steps.forEach((step, i) => line.points.set(step, curve.values[i]));
    line.lastStep = Math.max(line.lastStep ?? 0, ...curve.steps.slice(-1));
  }

  /** Steps of a resumed run come again, and replace what was there. */
  add(lines, run) {
    for (const curve of this.chart.curves) {
      for (const row of lines) {
        if (Number.isFinite(row[curve.key])) this.set({ ...curve, steps: [row.step], values: [row[curve.key]] }, run);
      }
    }
  }

  find(key, run) {
    return this.lines.find((line) => line.key === key && line.run.key === run.key);
  }

  get isSmooth() {
    return this.board.smoothing !== "none" && !this.chart.is_exact;
  }

  get hasRuns() {
    return this.lines.some((line) => line.run.key);
  }

  // --- drawing
  draw() {
    this.width = this.area.clientWidth;
    if (!this.width) return;
    this.shown = this.lines.filter((line) => !line.isHidden && line.points.size).map((line) => this.prepare(line));
    this.shown = this.shown.filter((line) => line.steps.length);
    this.scale();
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.cursor = svg("g", {});
    const curves = this.shown.flatMap((line) => this.curve(line));
    this.svg.replaceChildren(...this.axes(), ...curves, ...this.names(), ...this.marks(), this.cursor);
    this.drawLegend();
    this.point(null);
    this.fillTable();
  }

  /** What is visible of a line: steps, values and their smoothed form. */
  prepare(line) {
    const [first, last] = this.board.range ?? [-Infinity, Infinity];
    const steps = [...line.points.keys()].sort((a, b) => a - b);
    const values = steps.map((step) => line.points.get(step));
    const smooth = smoothed(steps, values, this.isSmooth ? SMOOTHING[this.board.smoothing](steps.length) : 0);
    const inside = steps.map((step, i) => i).filter((i) => steps[i] >= first && steps[i] <= last);
    const pick = (list) => inside.map((i) => list[i]);
    const place = this.lines.indexOf(line);
    return { ...line, steps: pick(steps), values: pick(values), smooth: pick(smooth), style: this.style(line, place) };
  }

  /** Colour by run, dashes by curve; with one run, both by curve. */
  style(line, place) {
    const curve = this.chart.curves.findIndex((one) => one.key === line.key);
    return this.hasRuns ? `al-c${line.run.colour} al-d${Math.max(curve, 0)}` : `al-c${place} al-d${place}`;
  }

  scale() {
    const all = this.shown.flatMap((line) => (!this.isSmooth ? line.values : [...line.values, ...line.smooth]));
    this.isLog = (this.board.isLog || this.chart.is_log) && all.length > 0 && all.every((value) => value > 0);
    const [low, high] = this.isLog ? [null, null] : [this.chart.low, this.chart.high];
    const [least, most] = [Math.min(...all, low ?? Infinity), Math.max(...all, high ?? -Infinity)];
    this.yTicks = this.isLog ? logTicks(least, most) : ticks(least, most, 4);
    const transform = this.isLog ? Math.log : (value) => value;
    const [bottom, top] = [transform(this.yTicks[0]), transform(this.yTicks.at(-1))];
    this.range = this.board.range ?? [0, this.board.lastStep()];
    this.right = this.width - MARGIN.right - (this.hasRuns ? LABEL_WIDTH : 0);
    const inner = HEIGHT - MARGIN.top - MARGIN.bottom;
    this.x = (step) => MARGIN.left + ((step - this.range[0]) / (this.range[1] - this.range[0])) * (this.right - MARGIN.left);
    this.y = (value) => MARGIN.top + (1 - (transform(value) - bottom) / (top - bottom || 1)) * inner;
  }

  axes() {
    const rows = this.yTicks.flatMap((tick) => [
      svg("line", { class: "grid", x1: MARGIN.left, x2: this.right, y1: this.y(tick), y2: this.y(tick) }),
      svg("text", { x: MARGIN.left - 6, y: this.y(tick) + 4, "text-anchor": "end" }, compact(tick)),
    ]);
    const columns = ticks(...this.range, Math.max(2, Math.floor(this.width / 90)))
      .filter((tick) => Number.isInteger(tick) && tick >= this.range[0] && this.x(tick) <= this.right + 1)
      .map((tick) => svg("text", { x: this.x(tick), y: HEIGHT - 6, "text-anchor": "middle" }, compact(tick)));
    return [...rows, ...columns];
  }

  curve(line) {
    const draw = (kind, values) => {
      const points = values.map((value, i) => `${this.x(line.steps[i]).toFixed(1)},${this.y(value).toFixed(1)}`);
      return svg("polyline", { class: `${kind} ${line.style}`, points: points.join(" ") });
    };
    const end = { x: this.x(line.steps.at(-1)), y: this.y(line.smooth.at(-1)) };
    const dot = svg("circle", { class: `dot ${line.style}`, cx: end.x, cy: end.y, r: 2.5 }); // one step alone has no line
    const lines = !this.isSmooth ? [draw("smooth", line.values)] : [draw("raw", line.values), draw("smooth", line.smooth)];
    return [...lines, dot];
  }

  /** The name of its run at the end of every curve, moved down where two would lie on each other. */
  names() {
    if (!this.hasRuns) return [];
    const ends = this.shown.map((line) => ({ line, x: this.x(line.steps.at(-1)) + 6, y: this.y(line.smooth.at(-1)) + 4 }));
    ends.sort((a, b) => a.y - b.y);
    for (const [i, end] of ends.entries()) {
      const above = ends.slice(0, i).filter((other) => Math.abs(other.x - end.x) < LABEL_WIDTH);
      end.y = Math.max(end.y, ...above.map((other) => other.y + LABEL_HEIGHT));
    }
    return ends.map(({ line, x, y }) => svg("text", { class: `name ${line.style}`, x, y }, line.run.label));
  }

  /** A triangle at the foot of every step with an alarm. */
  marks() {
    const foot = HEIGHT - MARGIN.bottom;
    return [...this.board.alarms.keys()]
      .filter((step) => step >= this.range[0] && step <= this.range[1])
      .map((step) => {
        const x = this.x(step);
        return svg("path", { class: "alarm", d: `M${x - 5},${foot} h10 l-5,-9 z` });
      });
  }

  drawLegend() {
    // Colours of runs are told by the page, once for all plots; here, what is solid and what is dashed.
    const entries = this.hasRuns
      ? this.chart.curves.map((curve, i) => legendEntry(`al-d${i}`, curve.words))
      : this.lines.map((line, i) => legendEntry(this.style(line, i), line.words));
    this.legend.hidden = entries.length < 2;
    this.legend.replaceChildren(...entries);
  }

  // --- reading
  listen() {
    const stepAt = (event) => {
      const at = event.clientX - this.svg.getBoundingClientRect().left;
      const steps = this.steps();
      return steps.length ? steps[nearest(steps.map(this.x), at)] : null;
    };
    this.svg.addEventListener("pointermove", (event) => {
      const step = stepAt(event);
      this.board.point(step);
      if (this.from !== undefined && this.from !== null && step !== null) this.select(this.from, step);
    });
    this.svg.addEventListener("pointerdown", (event) => (this.from = event.pointerType === "mouse" ? stepAt(event) : null));
    this.svg.addEventListener("pointerup", (event) => this.endZoom(stepAt(event)));
    this.svg.addEventListener("pointerleave", () => {
      this.from = null;
      this.board.point(null);
    });
    this.svg.addEventListener("dblclick", () => this.board.zoom(null));
    this.area.addEventListener("keydown", (event) => this.press(event));
    this.area.addEventListener("blur", () => this.board.point(null));
  }

  endZoom(to) {
    const from = this.from;
    this.from = null;
    if (from !== null && from !== undefined && to !== null && from !== to) this.board.zoom([Math.min(from, to), Math.max(from, to)]);
  }

  select(from, to) {
    const [left, right] = [this.x(Math.min(from, to)), this.x(Math.max(from, to))];
    this.cursor.append(svg("rect", { class: "selection", x: left, y: MARGIN.top, width: right - left, height: HEIGHT - MARGIN.top - MARGIN.bottom }));
  }

  press(event) {
    const steps = this.steps();
    if (!steps.length) return;
    const at = this.at === null ? steps.length - 1 : nearest(steps, this.at);
    const far = Math.max(1, Math.round(steps.length / 10));
    const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -far, PageUp: far, Home: -steps.length, End: steps.length };
    if (event.key in moves) this.board.point(steps[clamp(at + moves[event.key], 0, steps.length - 1)]);
    else if (event.key === "+") this.board.zoom([steps[clamp(at - far * 2, 0, at)], steps[clamp(at + far * 2, at, steps.length - 1)]]);
    else if (event.key === "-" || event.key === "0") this.board.zoom(null);
    else return;
    event.preventDefault();
  }

  /** Every step at which some line has a value, ascending. */
  steps() {
    return [...new Set((this.shown ?? []).flatMap((line) => line.steps))].sort((a, b) => a - b);
  }

  point(step) {
    this.at = step;
    if (!this.shown?.length || !this.cursor) return this.say("", null);
    const at = this.shown.map((line) => ({ line, i: step === null ? line.steps.length - 1 : nearest(line.steps, step) }));
    this.cursor.replaceChildren();
    if (step !== null) {
      const x = clamp(this.x(step), MARGIN.left, this.right);
      this.cursor.append(svg("line", { class: "cursor", x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }));
      for (const { line, i } of at) {
        this.cursor.append(svg("circle", { class: `dot ${line.style}`, cx: this.x(line.steps[i]), cy: this.y(line.values[i]), r: 4 }));
      }
    }
    const values = this.read(at.map(({ line, i }) => ({ line, value: step === null ? line.smooth[i] : line.values[i] })));
    const alarms = step === null ? [] : (this.board.alarms.get(step) ?? []);
    const words = step === null ? values : [`${this.board.words.step} ${step}: ${values.join(" · ")}`, ...alarms.map((one) => `⚠ ${one}`)];
    this.say(words.join(step === null ? " · " : " "), step);
  }

  /** Values in words: `0.51`, `chosen 0.3 · rejected −0.2`, or for several runs `1: 0.74 / 0.72 · 2: 0.69 / 0.70`. */
  read(values) {
    const words = ({ value }) => format(value, this.chart.digits);
    if (!this.hasRuns) return values.map((one) => (this.lines.length > 1 ? `${one.line.words} ${words(one)}` : words(one)));
    const runs = [...new Set(values.map(({ line }) => line.run))];
    return runs.map((run) => `${run.label}: ${values.filter(({ line }) => line.run === run).map(words).join(" / ")}`);
  }

  say(words, step) {
    this.output.textContent = words;
    const [first, last] = this.board.range ?? this.range ?? [0, 1];
    this.area.setAttribute("aria-valuemin", first);
    this.area.setAttribute("aria-valuemax", last);
    this.area.setAttribute("aria-valuenow", step ?? last);
    this.area.setAttribute("aria-valuetext", words || "–");
  }

  // --- the same as a table
  fillTable() {
    if (!this.details.open || !this.shown) return;
    const all = this.steps();
    const every = Math.max(1, Math.ceil(all.length / TABLE_ROWS));
    const steps = all.filter((_, i) => i % every === 0 || i === all.length - 1);
    const names = this.shown.map((line) => (this.hasRuns ? `${line.run.name} ${this.chart.curves.length > 1 ? line.words : ""}` : line.words));
    const body = steps.map((step) => [step, ...this.shown.map((line) => (line.points.has(step) ? format(line.points.get(step), this.chart.digits) : "–"))]);
    this.table.replaceChildren(table([this.board.words.step, ...names], body));
  }
}

export function legendEntry(style, words) {
  const entry = element("li", {});
  const swatch = svg("svg", { width: 24, height: 8, "aria-hidden": "true" });
  swatch.append(svg("line", { class: `smooth ${style}`, x1: 1, x2: 23, y1: 4, y2: 4 }));
  entry.append(swatch, words);
  return entry;
}

function table(names, rows) {
  const [all, head, body] = [element("table", { class: "al-figures-table" }), element("thead", {}), element("tbody", {})];
  const line = (cells, kind) => {
    const row = element("tr", {});
    row.append(...cells.map((cell, i) => element(kind ?? (i ? "td" : "th"), i || kind ? (kind ? { scope: "col" } : {}) : { scope: "row" }, cell)));
    return row;
  };
  head.append(line(names, "th"));
  body.append(...rows.map((cells) => line(cells)));
  all.append(head, body);
  return all;
}
