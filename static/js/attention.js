// Where somebody looked, as far as a page can tell: how long the comparison was visible, how long each response was the
// one being read, how often the reader went from one to another, and how much of each was scrolled into view.

const MAX_MS = 24 * 3_600_000;
const MAX_SWITCHES = 10_000;

class Attention {
  #shownMs = 0;
  #since = null; // null while hidden or paused
  #panes = [];
  #scrolled = [];
  #active = null;
  #switches = 0;

  /** A new comparison of `n` responses, visible from now on. */
  start(n) {
    this.#shownMs = 0;
    this.#panes = Array(n).fill(0);
    this.#scrolled = Array(n).fill(0);
    this.#active = null;
    this.#switches = 0;
    this.#since = document.hidden ? null : performance.now();
  }

  /** The reader turned to this response. */
  look(pane) {
    if (pane === this.#active || pane >= this.#panes.length) return;
    this.#settle();
    if (this.#active !== null) this.#switches = Math.min(MAX_SWITCHES, this.#switches + 1);
    this.#active = pane;
  }

  /** So much of a response, 0 to 1, has been in view. */
  scrolled(pane, share) {
    if (pane < this.#scrolled.length) this.#scrolled[pane] = Math.max(this.#scrolled[pane], Math.min(1, Math.max(0, share)));
  }

  pause() {
    this.#settle();
    this.#since = null;
  }

  resume() {
    this.#since ??= performance.now();
  }

  get active() {
    return this.#active;
  }

  report() {
    this.#settle();
    const bounded = (ms) => Math.min(MAX_MS, Math.round(ms));
    return {
      shown_ms: bounded(this.#shownMs),
      attention: {
        panes: this.#panes.map(bounded),
        switches: this.#switches,
        scrolled: this.#scrolled.map((share) => Math.round(share * 100) / 100),
      },
    };
  }

  #settle() {
    if (this.#since === null) return;
    const passed = performance.now() - this.#since;
    this.#since += passed;
    this.#shownMs += passed;
    if (this.#active !== null) this.#panes[this.#active] += passed;
  }
}

export const attention = new Attention();
