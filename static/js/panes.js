// The responses: shown, compared, scrolled, and noticed. Neutral names, the same type and width for all of them.
import { attention } from "./attention.js";
import * as differing from "./diff.js";
import { $, $$, Remembered, fill, say, strings } from "./page.js";

const all = $$("#panes .label-pane");
const isRaw = new Remembered("raw");
const isLinked = new Remembered("linked");
const isStacked = matchMedia("(width < 56.25rem)");
const scrollsAlone = matchMedia("(width >= 56.25rem) and (height >= 36rem)"); // as in label.css
const isStill = matchMedia("(prefers-reduced-motion: reduce)");
const LINE = 60; // pixels for one press of an arrow key

let responses = [];
let seen = new Set(); // those that were in view
let improved = new Map(); // by place: the text as edited here
let isDiff = false; // off at first, then for as long as the page is open

const motion = () => (isStill.matches ? "instant" : "smooth");
export const nameOf = (place) => (responses.length > 2 ? "ABCD"[place] : String(place + 1));
export const shownPanes = () => all.slice(0, responses.length);
const isInView = ({ top, bottom }) => bottom > 0 && top < innerHeight;

/** Also of what came into view just now: the observer tells with the next frame, which a window that was behind another
 * may have to wait for. */
export function areAllSeen() {
  for (const place of responses.keys()) if (isInView(all[place].firstElementChild.getBoundingClientRect())) seen.add(place);
  return seen.size === responses.length;
}

export const paneAt = (place) => all[place];

/** Only for HTML that our server rendered and sanitised; everything else is text. */
export function setHtml(element, html) {
  element.innerHTML = html;
}

export function showPanes(given) {
  responses = given;
  seen = new Set();
  improved = new Map();
  attention.start(given.length);
  differing.unmark();
  $("#panes").dataset.n = given.length;
  all.forEach((pane, place) => showPane(pane, place, given[place]));
  for (const button of $$("[data-pane]")) button.hidden = Number(button.dataset.pane) >= given.length;
  $("#diff").hidden = given.length > 2;
  if (isDiff) requestAnimationFrame(() => setTimeout(markDifferences)); // after it was painted
}

function showPane(pane, place, response) {
  pane.hidden = !response;
  observer.unobserve(pane.firstElementChild);
  if (!response) return void pane.querySelector(".prose").replaceChildren();
  const [number, name] = pane.querySelectorAll("h2 > span");
  number.textContent = nameOf(place);
  name.textContent = fill(strings.response, { name: nameOf(place) });
  fillPane(place);
  pane.scrollTop = 0;
  observer.observe(pane.firstElementChild); // observing anew reports at once what is in view
}

function fillPane(place) {
  const body = all[place].querySelector(".prose");
  const text = improved.get(place);
  const isPlain = isRaw.value || text !== undefined;
  body.classList.toggle("is-raw", isPlain);
  if (isPlain) body.textContent = text ?? responses[place].text;
  else setHtml(body, responses[place].html);
  all[place].querySelector("[data-edited]").hidden = text === undefined;
}

/** Shows an edit, as the plain text that it is, in the place of the response; undefined shows the response again. */
export function showImproved(place, text) {
  if (text === undefined) improved.delete(place);
  else improved.set(place, text);
  fillPane(place);
  markDifferences();
}

// --- how somebody likes to read --------------------------------------------------------------------------------------

export function toggleRaw() {
  isRaw.toggle();
  for (const place of responses.keys()) fillPane(place);
  showSwitches();
  if (isDiff) markDifferences();
  say(isRaw.value ? strings.raw : strings.rendered);
}

export function toggleLinked() {
  isLinked.toggle();
  showSwitches();
  say(isLinked.value ? strings.linked : strings.unlinked);
  if (isLinked.value) follow(attention.active ?? 0);
}

export function toggleDiff() {
  if (responses.length !== 2) return;
  if (!differing.canMark()) return void say(strings.cannotMark);
  isDiff = !isDiff;
  showSwitches();
  const found = markDifferences();
  if (!found) say(strings.noDiff);
  else if (found.isCoarse) say(strings.linesDiffer);
  else say(found.left + found.right ? strings.differences : strings.same, found);
}

function markDifferences() {
  if (!differing.canMark()) return null;
  if (isDiff && responses.length === 2) return differing.mark(...shownPanes().map((pane) => pane.querySelector(".prose")));
  differing.unmark();
  return null;
}

function showSwitches() {
  for (const [id, isOn] of [["raw", isRaw.value], ["linked", isLinked.value], ["diff", isDiff]]) {
    document.getElementById(id).setAttribute("aria-pressed", String(isOn));
  }
}

// --- where they are --------------------------------------------------------------------------------------------------

export function focusPane(place) {
  const pane = all[place];
  if (!pane || pane.hidden) return;
  attention.look(place);
  seen.add(place);
  pane.focus({ preventScroll: true, focusVisible: true });
  if (!scrollsAlone.matches) pane.scrollIntoView({ block: "start", behavior: motion() });
}

/** One response further; at the first and the last nothing happens. */
export function movePane(step) {
  const place = attention.active === null ? (step > 0 ? 1 : 0) : attention.active + step;
  focusPane(Math.min(Math.max(place, 0), responses.length - 1));
}

/** Scrolls the response being read by lines or, with `pages`, by screens. False where the page itself scrolls. */
export function scrollPane({ lines = 0, pages = 0 }) {
  if (!scrollsAlone.matches) return false;
  const pane = all[attention.active ?? 0];
  attention.look(attention.active ?? 0);
  pane.scrollBy({ top: lines * LINE + pages * 0.85 * pane.clientHeight, behavior: pages ? motion() : "instant" });
  return true;
}

const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) seen.add(all.indexOf(entry.target.parentElement));
  for (const place of responses.keys()) measure(place);
  markPlace();
});

function measure(place) {
  const pane = all[place];
  const { top, height } = pane.getBoundingClientRect();
  const share = scrollsAlone.matches
    ? (pane.scrollTop + pane.clientHeight) / pane.scrollHeight
    : (innerHeight - $("#bar").offsetHeight - top) / height;
  attention.scrolled(place, share);
}

/** Where responses are stacked, the numbers in the bar say which one is being read. */
function markPlace() {
  let place = -1;
  if (isStacked.matches) {
    place = Math.max(0, scrollY ? shownPanes().findLastIndex((pane) => pane.getBoundingClientRect().top < innerHeight / 2) : 0);
    attention.look(place);
  }
  for (const button of $$("[data-pane]")) button.setAttribute("aria-current", String(Number(button.dataset.pane) === place));
}

let leader = null; // the pane that somebody scrolls while the others follow
let leaving = null;

/** The others show the same share of their text: responses differ in length. */
function follow(place) {
  const share = all[place].scrollTop / Math.max(1, all[place].scrollHeight - all[place].clientHeight);
  for (const pane of shownPanes()) {
    if (pane !== all[place]) pane.scrollTop = share * (pane.scrollHeight - pane.clientHeight);
  }
}

all.forEach((pane, place) => {
  pane.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") attention.look(place); });
  pane.addEventListener("pointerdown", () => attention.look(place));
  pane.addEventListener("focusin", () => attention.look(place));
  pane.addEventListener("scroll", () => {
    measure(place);
    if (!isLinked.value || (leader !== null && leader !== place)) return;
    leader = place;
    clearTimeout(leaving);
    leaving = setTimeout(() => { leader = null; }, 120);
    follow(place);
  }, { passive: true });
});

addEventListener("scroll", () => {
  if (scrollsAlone.matches) return;
  for (const place of responses.keys()) measure(place);
  markPlace();
}, { passive: true });

for (const button of $$("[data-pane]")) button.addEventListener("click", () => focusPane(Number(button.dataset.pane)));
$("#raw").addEventListener("click", toggleRaw);
$("#linked").addEventListener("click", toggleLinked);
$("#diff").addEventListener("click", toggleDiff);
showSwitches();
