// The reader's own time: what was judged in this sitting, breaks proposed, breaks taken.
import { attention } from "./attention.js";
import { $, $$, config, fill, strings } from "./page.js";
import { setAway, signOfLife } from "./queue.js";

const REST_MS = 5 * 60_000; // whoever did nothing for so long had a break
const LATER_MS = 10 * 60_000;
const NAME = `label:${config.person}:${config.campaign}:sitting`;
const MAX_TIMES = 2_000;

let times = stored(); // milliseconds per judgment
let worked = 0; // milliseconds since the last break
let due = config.breakMinutes * 60_000;
let last = Date.now();

function stored() {
  try {
    const found = JSON.parse(sessionStorage.getItem(NAME));
    return Array.isArray(found) ? found.filter(Number.isFinite) : [];
  } catch {
    return [];
  }
}

export function countJudgment(ms) {
  times = [...times, ms].slice(-MAX_TIMES);
  try {
    sessionStorage.setItem(NAME, JSON.stringify(times));
  } catch {
    // storage is switched off: counted as long as the page is open
  }
  showSitting();
}

export function uncountJudgment() {
  times = times.slice(0, -1);
  showSitting();
}

export const nJudged = () => times.length;

function showSitting() {
  const sorted = times.toSorted((a, b) => a - b);
  const middle = sorted.length ? (sorted[Math.floor((sorted.length - 1) / 2)] + sorted[Math.floor(sorted.length / 2)]) / 2 : 0;
  const text = sorted.length ? fill(strings.session, { n: sorted.length, seconds: Math.round(middle / 1000) }) : "";
  for (const element of $$("[data-session]")) element.textContent = text;
}

/** Called with every key and every movement. */
function live() {
  signOfLife();
  const passed = Date.now() - last;
  last += passed;
  worked = passed > REST_MS ? 0 : worked + passed;
  if (config.breakMinutes && worked >= due && !$("#pause").open) $("#break").hidden = false;
}

function rested() {
  worked = 0;
  due = config.breakMinutes * 60_000;
  $("#break").hidden = true;
}

$("#break-later").addEventListener("click", () => {
  due = worked + LATER_MS;
  $("#break").hidden = true;
});
$("#break-now").addEventListener("click", () => $("#pause").showModal());

// The dialog stops the clock, and lets the leases run out if the break is long.
new MutationObserver(() => {
  const isOpen = $("#pause").open;
  setAway(isOpen);
  if (isOpen) attention.pause();
  else attention.resume();
  rested();
}).observe($("#pause"), { attributeFilter: ["open"] });

document.addEventListener("visibilitychange", () => {
  if (document.hidden) attention.pause();
  else if (!$("#pause").open) attention.resume();
  live();
});
for (const name of ["pointermove", "keydown", "scroll", "touchstart"]) addEventListener(name, live, { passive: true, capture: true });
showSitting();
