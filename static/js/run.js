// A run as it goes on: told by server-sent events, or asked for where these do not get through; its curves and alarms.
// Also on the overview, where lines about runs are only asked for. Asks before what cannot be taken back.

import { Board } from "./plots.js";
import { element } from "./scales.js";

const POLL_MS = 1000;
const RETRY_MS = 5000;
const CHARTS_MS = 3000; // after a metric came for the first time
const UNDRAWN = ["step", "n_pairs", "tokens", "seconds"]; // numbers of a line that are no curves: as training.curves.STAYS
const SILENT_MS = 8000; // after connecting; a proxy that says nothing for so long keeps the events to itself

/** Follows one run: `root` carries data-live and, with curves, data-events and data-curves; data-show is filled in. */
class LiveRun {
  constructor(root) {
    this.root = root;
    this.after = 0;
    this.names = new Set(UNDRAWN); // metrics that have a chart, or need none
    this.isLight = "light" in root.dataset; // a line on the overview: no curves, no log
    this.alarms = root.querySelector("[data-alarms]");
    const board = root.querySelector("[data-board]");
    this.board = board && new Board(board);
  }

  async start() {
    if (this.board) await this.load();
    if (this.root.dataset.active === "no") return;
    if (this.root.dataset.events && !(await this.listen())) return;
    await this.poll();
  }

  /** The curves so far, thinned by the server. */
  async load() {
    try {
      const { charts, alarms, last_step } = await getJSON(this.root.dataset.curves);
      this.after = last_step;
      this.board.mark(alarms);
      this.board.show(charts);
      for (const curve of charts.flatMap((chart) => chart.curves)) this.names.add(curve.key);
      this.list(alarms);
    } catch (error) {
      console.warn("curves.json:", error); // live lines come all the same
    }
  }

  /** Resolves to false when the run has ended, to true when events do not arrive and asking is what is left. */
  listen() {
    return new Promise((resolve) => {
      const open = () => {
        const source = new EventSource(`${this.root.dataset.events}?after=${this.after}`);
        const stop = () => {
          clearTimeout(silence);
          source.close();
          document.removeEventListener("visibilitychange", pause);
        };
        // A page in the background listens to nothing: browsers allow six connections, for all pages of a site.
        const pause = () => {
          if (!document.hidden) return;
          stop();
          visible().then(open);
        };
        const silence = setTimeout(() => (stop(), resolve(true)), SILENT_MS);
        document.addEventListener("visibilitychange", pause);
        source.addEventListener("state", (event) => {
          clearTimeout(silence);
          this.link("listening");
          this.show(JSON.parse(event.data));
        });
        source.addEventListener("end", () => (stop(), resolve(false)));
        source.addEventListener("error", () => {
          if (source.readyState === EventSource.CLOSED) (stop(), resolve(true));
          else this.link("reconnecting");
        });
      };
      visible().then(open);
    });
  }

  async poll() {
    for (;;) {
      let wait = POLL_MS;
      try {
        const state = await getJSON(`${this.root.dataset.live}?after=${this.after}${this.isLight ? "&log=0" : ""}`);
        this.link("polling");
        this.show(state);
        if (!state.is_active) return;
      } catch (error) {
        console.warn("live.json:", error);
        this.link("reconnecting");
        wait = RETRY_MS;
      }
      await visible();
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }

  /** How news arrives, as a word of the page. */
  link(kind) {
    const shown = this.root.querySelector("[data-show=link]");
    if (shown) [shown.textContent, shown.dataset.link] = [shown.dataset[kind], kind];
  }

  show(state) {
    if (state.metrics?.length) this.take(state.metrics);
    const parts = Object.fromEntries([...this.root.querySelectorAll("[data-show]")].map((e) => [e.dataset.show, e]));
    if (parts.phase) parts.phase.textContent = state.phase || state.status;
    if (parts.steps) parts.steps.textContent = state.n_steps ? `${state.step} / ${state.n_steps}` : "";
    if (parts.left) parts.left.textContent = this.timeLeft(state.seconds_left);
    if (parts.bar) showProgress(parts.bar, state);
    if (parts.log && state.log !== undefined) showLog(parts.log, state.log);
    for (const [name, value] of Object.entries(state.system ?? {})) this.showFigure(name, value);
    // What the server renders has changed: status, judgments, buttons, verdict. Its page has them.
    if (this.isLight ? !state.is_active : state.state !== this.root.dataset.state) location.reload();
  }

  take(lines) {
    this.after = lines.at(-1).step;
    if (!this.board) return;
    const alarms = lines.flatMap(alarmsOf);
    this.board.mark(alarms);
    this.list(alarms);
    this.board.add(lines);
    // A metric that came for the first time has no chart yet: the server knows which one is its own.
    const names = lines.flatMap((line) => Object.keys(line).filter((name) => Number.isFinite(line[name])));
    if (names.every((name) => this.names.has(name))) return;
    for (const name of names) this.names.add(name);
    // Once for all that come in the next seconds: a run's first steps bring one after the other.
    this.waiting ??= setTimeout(() => {
      this.waiting = null;
      getJSON(this.root.dataset.curves).then(({ charts }) => this.board.show(charts), console.warn);
    }, CHARTS_MS);
  }

  /** Adds alarms to the page's list; the step is a button that points the plots at it. */
  list(alarms) {
    if (!this.alarms || !alarms.length) return;
    this.alarms.hidden = false;
    const list = this.alarms.querySelector("ol");
    for (const { step, message, action } of alarms) {
      const item = element("li", {});
      const button = element("button", { type: "button", class: "al-step" }, `${this.board.words.step} ${step}`);
      button.addEventListener("click", () => this.board.point(step));
      const words = this.alarms.dataset[action] ?? action ?? "";
      item.append(button, element("span", {}, message ?? ""), element("span", { class: "al-badge al-badge-warn" }, words));
      if (!words) item.lastChild.remove();
      list.append(item);
    }
    this.alarms.querySelector("[data-count]").textContent = list.children.length;
  }

  showFigure(name, value) {
    const shown = this.root.querySelector(`[data-figure="${name}"]`);
    if (!shown) return;
    shown.textContent = Math.round(value).toLocaleString();
    shown.closest("[hidden]")?.removeAttribute("hidden");
  }

  timeLeft(seconds) {
    if (!(seconds > 0)) return "";
    const words = this.root.dataset.left.replace("%", duration(seconds));
    return this.isLight ? words : ` · ${words}`;
  }
}

/** As training.curves.alarms: what a metric line says of alarms. */
function alarmsOf(line) {
  const alarms = Array.isArray(line.alarms) ? line.alarms : [];
  if (!alarms.length && line.is_skipped) return [{ step: line.step, action: "skip_step", message: "" }];
  return alarms.map((alarm) => ({ ...alarm, step: line.step }));
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

function duration(seconds) {
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

/** Resolves when the page is in front: a page in the background asks nothing of the server. */
function visible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
  });
}

async function getJSON(url) {
  const response = await fetch(url, { headers: { Accept: "application/json" } });
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  return response.json();
}

for (const root of document.querySelectorAll("[data-live]")) new LiveRun(root).start();
for (const log of document.querySelectorAll(".al-log")) log.scrollTop = log.scrollHeight;
document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});
