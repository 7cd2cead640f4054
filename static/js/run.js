// The admin's own pages: polls live.json of a run, draws its curves, and asks before what cannot be taken back.

const POLL_MS = 1000;
const RETRY_MS = 5000;
const MOST_SMOOTHING = 0.9; // weight of the past in the exponential mean, bias-corrected as in Adam
const SMOOTH_STEPS = 12; // a curve of so few steps is shown as it is
const HEIGHT = 180;
const MARGIN = { top: 10, right: 8, bottom: 30, left: 44 };

// --- live state of a run ---------------------------------------------------------------------------------------------

/** Follows one run: `root` carries data-live (address); elements inside with data-show are filled in. */
class LiveRun {
  constructor(root) {
    this.root = root;
    this.after = null;
    this.isLight = "light" in root.dataset; // a line on the overview: no curves, no log
    this.charts = [...root.querySelectorAll("[data-series]")].map((figure) => new Chart(figure));
  }

  async follow() {
    for (;;) {
      let wait = POLL_MS;
      try {
        const state = await this.fetch();
        this.show(state);
        // What is not polled has changed: status, judgments, buttons, verdict. The server's page has them.
        if (this.isLight ? !state.is_active : state.state !== this.root.dataset.state) {
          location.reload();
          return;
        }
        if (!state.is_active) return;
      } catch (error) {
        console.warn("live.json:", error);
        wait = RETRY_MS;
      }
      await visible();
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }

  async fetch() {
    const query = new URLSearchParams();
    if (this.after !== null) query.set("after", this.after);
    if (this.isLight) query.set("log", "0");
    const response = await fetch(`${this.root.dataset.live}?${query}`, { headers: { Accept: "application/json" } });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    return response.json();
  }

  show(state) {
    if (state.metrics.length) this.after = state.metrics.at(-1).step;
    const parts = Object.fromEntries([...this.root.querySelectorAll("[data-show]")].map((e) => [e.dataset.show, e]));
    if (parts.phase) parts.phase.textContent = state.phase || state.status;
    if (parts.steps) parts.steps.textContent = state.n_steps ? `${state.step} / ${state.n_steps}` : "";
    if (parts.left) parts.left.textContent = this.timeLeft(state.seconds_left);
    if (parts.bar) showProgress(parts.bar, state);
    if (parts.log && state.log !== undefined) showLog(parts.log, state.log);
    if (!state.metrics.length) return;
    this.root.querySelector("[data-charts]")?.removeAttribute("hidden");
    for (const chart of this.charts) chart.add(state.metrics);
  }

  timeLeft(seconds) {
    if (!(seconds > 0)) return "";
    const words = text("left", "% left").replace("%", duration(seconds));
    return this.isLight ? words : ` · ${words}`;
  }
}

function showProgress(bar, state) {
  if (state.n_steps) bar.value = Math.min(100, (100 * state.step) / state.n_steps);
  else bar.removeAttribute("value"); // length unknown: shown as waiting
}

/** Replaces the text; whoever reads the end stays at the end, whoever scrolled up stays where they are. */
function showLog(pre, text) {
  if (pre.textContent === text) return;
  const isAtEnd = pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 8;
  pre.textContent = text;
  if (isAtEnd) pre.scrollTop = pre.scrollHeight;
}

/** A word of the page in its language, from the data attribute of that name. */
function text(name, otherwise) {
  return document.querySelector(`[data-${name}]`)?.dataset[name] ?? otherwise;
}

function duration(seconds) {
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

/** Resolves when the page is in front: a page in the background asks nothing of the server. */
function visible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
}

// --- curves ----------------------------------------------------------------------------------------------------------

/** One curve over optimizer steps: raw values faint, their running mean strong, values under the pointer. */
class Chart {
  constructor(figure) {
    this.figure = figure;
    this.key = figure.dataset.series;
    this.digits = Number(figure.dataset.digits ?? 3);
    this.bounds = [figure.dataset.low, figure.dataset.high].map((bound) => (bound === undefined ? null : Number(bound)));
    this.output = figure.querySelector("output");
    this.points = new Map(); // step → value; a resumed run repeats steps
    this.svg = svgElement("svg", { height: HEIGHT, role: "img" });
    figure.append(this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.leave());
    new ResizeObserver(() => this.draw()).observe(figure);
  }

  add(metrics) {
    for (const row of metrics) {
      if (Number.isFinite(row[this.key])) this.points.set(row.step, row[this.key]);
    }
    this.draw();
  }

  draw() {
    this.steps = [...this.points.keys()].sort((a, b) => a - b);
    this.values = this.steps.map((step) => this.points.get(step));
    this.means = runningMean(this.values);
    this.width = this.svg.clientWidth;
    if (!this.steps.length || !this.width) return;
    this.scale();
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.svg.replaceChildren(...this.axes(), this.line("raw", this.values), this.line("smooth", this.means));
    this.cursor = svgElement("g", {});
    this.svg.append(this.cursor);
    this.leave();
  }

  scale() {
    const [low, high] = this.bounds;
    this.yTicks = ticks(low ?? Math.min(...this.values), high ?? Math.max(...this.values), 4);
    this.xTicks = ticks(0, Math.max(this.steps.at(-1), 1), 5).filter(Number.isInteger);
    const [bottom, top] = [this.yTicks[0], this.yTicks.at(-1)];
    const right = Math.max(this.steps.at(-1), 1);
    const inner = { x: this.width - MARGIN.left - MARGIN.right, y: HEIGHT - MARGIN.top - MARGIN.bottom };
    this.x = (step) => MARGIN.left + (step / right) * inner.x;
    this.y = (value) => MARGIN.top + (1 - (value - bottom) / (top - bottom)) * inner.y;
  }

  axes() {
    const right = this.width - MARGIN.right;
    const rows = this.yTicks.flatMap((tick) => [
      svgElement("line", { class: "grid", x1: MARGIN.left, x2: right, y1: this.y(tick), y2: this.y(tick) }),
      svgElement("text", { x: MARGIN.left - 6, y: this.y(tick) + 4, "text-anchor": "end" }, compact(tick)),
    ]);
    const columns = this.xTicks
      .filter((tick) => this.x(tick) <= right + 1)
      .map((tick) => svgElement("text", { x: this.x(tick), y: HEIGHT - 14, "text-anchor": "middle" }, compact(tick)));
    const label = svgElement("text", { x: (MARGIN.left + right) / 2, y: HEIGHT - 1, "text-anchor": "middle" }, text("step", "step"));
    return [...rows, ...columns, label];
  }

  line(kind, values) {
    const points = values.map((value, i) => `${this.x(this.steps[i]).toFixed(1)},${this.y(value).toFixed(1)}`);
    return svgElement("polyline", { class: kind, points: points.join(" ") });
  }

  point(event) {
    if (!this.steps?.length) return;
    const at = event.clientX - this.svg.getBoundingClientRect().left;
    const i = nearest(this.steps.map(this.x), at);
    const [x, y] = [this.x(this.steps[i]), this.y(this.values[i])];
    this.cursor.replaceChildren(
      svgElement("line", { class: "cursor", x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }),
      svgElement("circle", { class: "dot", cx: x, cy: y, r: 3.5 }),
    );
    this.output.textContent = `${text("step", "step")} ${this.steps[i]}: ${this.values[i].toFixed(this.digits)}`;
  }

  /** Without the pointer, the newest mean is shown, and told to who cannot see the curve. */
  leave() {
    if (!this.means?.length) return;
    const end = { cx: this.x(this.steps.at(-1)), cy: this.y(this.means.at(-1)), r: 3 };
    this.cursor?.replaceChildren(svgElement("circle", { class: "dot", ...end })); // one step alone has no line
    this.output.textContent = this.means.at(-1).toFixed(this.digits);
    const caption = this.figure.querySelector("figcaption").firstChild.textContent.trim();
    const first = this.means[0].toFixed(this.digits);
    this.svg.setAttribute("aria-label", `${caption}: ${first} → ${this.output.textContent}`);
  }
}

function runningMean(values) {
  const past = Math.max(0, Math.min(MOST_SMOOTHING, 1 - SMOOTH_STEPS / values.length));
  let mean = 0;
  return values.map((value, i) => {
    mean = past * mean + (1 - past) * value;
    return mean / (1 - past ** (i + 1));
  });
}

/** About `n` round numbers from at or below `low` to at or above `high`. */
function ticks(low, high, n) {
  const span = high - low || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(span / n));
  const step = power * [1, 2, 5, 10].find((factor) => span / n <= power * factor);
  const first = Math.floor(low / step);
  const last = Math.max(Math.ceil(high / step), first + 1);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function compact(value) {
  return Math.abs(value) >= 10000 ? `${Number((value / 1000).toPrecision(3))}k` : String(value);
}

function nearest(positions, at) {
  return positions.reduce((best, x, i) => (Math.abs(x - at) < Math.abs(positions[best] - at) ? i : best), 0);
}

function svgElement(name, attributes, content) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (content !== undefined) element.textContent = content;
  return element;
}

// --- forms -----------------------------------------------------------------------------------------------------------

/** Another method has other parameters: load its form, keeping the campaign. */
function reloadOnMethod(select) {
  select.addEventListener("change", () => {
    const form = new FormData(select.form);
    location.search = new URLSearchParams({ campaign: form.get("campaign"), method: form.get("method") });
  });
}

/** Of the list of campaigns and their waiting judgments, only the chosen one is shown. */
function showWaiting(select) {
  const show = () => {
    for (const item of document.querySelectorAll("[data-campaign]")) item.hidden = item.dataset.campaign !== select.value;
  };
  select.addEventListener("change", show);
  show();
}

for (const root of document.querySelectorAll("[data-live]")) new LiveRun(root).follow();
for (const select of document.querySelectorAll("select[data-reload]")) reloadOnMethod(select);
for (const select of document.querySelectorAll(".al-start select[name=campaign]")) showWaiting(select);
for (const log of document.querySelectorAll(".al-log")) log.scrollTop = log.scrollHeight;
document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});
