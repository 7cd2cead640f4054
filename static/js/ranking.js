// Three or four responses, ranked without dragging: a digit is the rank of the response that is picked, then the next one
// without a rank is picked by itself; a letter picks. The same by buttons above each response.
import { $, $$, asks, element, fill, strings } from "./page.js";
import { nameOf, paneAt, shownPanes } from "./panes.js";

let ranks = []; // by place; null: none yet
let picked = null;
let changed = () => {};

export const onRanking = (callback) => { changed = callback; };
export const isRanking = () => ranks.length > 2;

/** `given` are ranks to begin with, by place, or null. */
export function startRanking(n, given = null) {
  ranks = n > 2 ? (given ?? Array(n).fill(null)) : [];
  picked = isRanking() && !given ? 0 : null;
  $("#ranking").hidden = !isRanking();
  for (const control of $$("[data-ranks]")) control.hidden = !isRanking();
  if (isRanking()) {
    for (const place of ranks.keys()) buildControl(place);
    paint();
  }
}

function buildControl(place) {
  const control = paneAt(place).querySelector("[data-ranks]");
  const legend = element("legend", { className: "visually-hidden", textContent: fill(strings.rankOf, { name: nameOf(place) }) });
  const radios = ranks.map((_, index) => {
    const radio = element("input", { type: "radio", name: `rank-${place}`, value: String(index + 1) });
    radio.setAttribute("aria-label", fill(strings.rank, { n: index + 1 }));
    return element("label", {}, radio, String(index + 1));
  });
  control.replaceChildren(legend, ...radios);
}

/** Takes the letter of a response, or a digit. */
export function rankingKey(key) {
  if (!isRanking()) return false;
  const place = "abcd".indexOf(key);
  if (key.length === 1 && place >= 0 && place < ranks.length) return pick(place);
  const digit = /^[1-4]$/.test(key) ? Number(key) : 0;
  if (digit < 1 || digit > ranks.length) return false;
  if (picked === null) return pick(digit - 1);
  setRank(picked, digit);
  return true;
}

function pick(place) {
  picked = place;
  paint();
  if (paneAt(place).getBoundingClientRect().top > innerHeight) paneAt(place).scrollIntoView({ block: "start" });
  return true;
}

function setRank(place, rank) {
  if (!asks.tie) ranks = ranks.map((other, at) => (at !== place && other === rank ? null : other));
  ranks[place] = rank;
  const missing = ranks.indexOf(null);
  picked = missing < 0 ? null : missing;
  paint();
  changed();
}

export function rankAllEqual() {
  if (!isRanking() || !asks.tie) return;
  ranks = ranks.map(() => 1);
  picked = null;
  paint();
  changed();
}

/** The ranking as a choice, {verdict, ranks by place}; null until every response has a rank. */
export function ranking() {
  if (!isRanking() || ranks.includes(null)) return null;
  const levels = [...new Set(ranks)].sort();
  if (levels.length === 1) return { verdict: "tie" };
  return { verdict: "preference", ranks: ranks.map((rank) => levels.indexOf(rank) + 1) };
}

/** In words of signs: “A > B = C”. */
export function inOrder(given) {
  const levels = [...new Set(given)].sort((a, b) => a - b);
  return levels.map((level) => given.flatMap((rank, place) => (rank === level ? [nameOf(place)] : [])).join(" = ")).join(" > ");
}

function paint() {
  shownPanes().forEach((pane, place) => {
    pane.classList.toggle("is-picked", place === picked);
    for (const radio of pane.querySelectorAll("[data-ranks] input")) radio.checked = Number(radio.value) === ranks[place];
  });
  const isDone = !ranks.includes(null);
  const summary = ranks.every((rank) => rank === null) ? strings.unranked : fill(strings.picked, { name: nameOf(picked ?? 0) });
  $("#summary").textContent = isDone ? inOrder(ranks) : summary;
  $("#summary").classList.toggle("is-done", isDone);
  $("#summary").dir = isDone ? "ltr" : "auto";
}

for (const control of $$("[data-ranks]")) {
  control.addEventListener("change", (event) => setRank(Number(control.dataset.ranks), Number(event.target.value)));
}
$("#all-equal")?.addEventListener("click", rankAllEqual);
