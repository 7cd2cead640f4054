// What belongs to a choice beside the choice: criteria, tags, a rationale, an improved response. All of it optional, but
// for a rationale that the campaign requires. Everything is kept until the comparison is over.
import { criteriaKey, criteriaValues, nextCriterion, showCriteria } from "./criteria.js";
import { $, $$, asks, element, say, strings } from "./page.js";
import { paneAt, showImproved, shownPanes } from "./panes.js";

const panel = $("#reasons");
const rationale = $("#rationale");
let responses = [];
let edits = new Map(); // by place

export { criteriaKey };
export const asksAnything = () => asks.criteria.length + asks.tags.length > 0 || asks.rationale !== "off" || asks.edit;

/** A new comparison; `said` is what was said of it before, when a judgment was taken back. */
export function startReasons(given, order, said = {}) {
  responses = given;
  edits = new Map();
  panel.hidden = true;
  closeEditors();
  showCriteria(given.length, order, said.criteria ?? {});
  rationale.value = said.reason ?? "";
  for (const box of $$("#tags input")) box.checked = (said.tags ?? []).includes(box.value);
}

/** Opens for a choice; the button to improve a response is there when one is preferred to all others. */
export function openReasons(choice) {
  panel.hidden = false;
  $("#edit").hidden = !asks.edit || best(choice) === null;
}

export const closeReasons = () => { panel.hidden = true; };

/** The place of the response preferred to all others, or null. */
export function best(choice) {
  if (choice?.verdict !== "preference") return null;
  if (!choice.ranks) return choice.side;
  const first = choice.ranks.flatMap((rank, place) => (rank === 1 ? [place] : []));
  return first.length === 1 ? first[0] : null;
}

/** What is posted with the choice. */
export function reasonsFor(choice, order) {
  const body = {};
  const tags = $$("#tags input:checked").map((box) => box.value);
  const reason = rationale.value.trim();
  const criteria = criteriaValues(order);
  const edit = edits.get(best(choice));
  if (tags.length) body.tags = tags;
  if (reason) body.reason = reason;
  if (Object.keys(criteria).length) body.criteria = criteria;
  if (edit !== undefined) body.edit = edit;
  return body;
}

/** Says what is missing, and goes there. False when nothing is. */
export function isIncomplete(choice) {
  const isStrong = choice.verdict === "tie" || choice.strength === 3;
  if (asks.rationale !== "required" || !isStrong || rationale.value.trim()) return false;
  say(strings.rationaleNeeded);
  rationale.focus();
  return true;
}

export function focusReasons() {
  (($("#tags input") ?? (rationale.hidden ? null : rationale)) ?? $("#criteria input"))?.focus();
}

export const cycleCriteria = () => nextCriterion();

// --- improving a response --------------------------------------------------------------------------------------------

export function editBest(choice) {
  const place = best(choice);
  if (!asks.edit || place === null) return void say(strings.cannotEdit);
  const pane = paneAt(place);
  const area = pane.querySelector("textarea");
  area.value = edits.get(place) ?? responses[place].text;
  pane.querySelector(".prose").hidden = true;
  pane.querySelector(".label-editor").hidden = false;
  area.focus();
  area.setSelectionRange(0, 0);
}

function finishEdit(place, isReset = false) {
  const pane = paneAt(place);
  const text = pane.querySelector("textarea").value;
  if (isReset || !text.trim() || text === responses[place].text) edits.delete(place);
  else edits.set(place, text);
  showImproved(place, edits.get(place));
  closeEditors();
  pane.focus({ preventScroll: true });
}

function closeEditors() {
  for (const pane of $$("#panes .label-pane")) {
    pane.querySelector(".label-editor").hidden = true;
    pane.querySelector(".prose").hidden = false;
  }
}

/** Takes over what stands in an open editor. */
export function finishEdits() {
  for (const [place, pane] of shownPanes().entries()) if (!pane.querySelector(".label-editor").hidden) finishEdit(place);
}

/** Puts an edit back, after an undo. */
export function restoreEdit(choice, text) {
  const place = best(choice);
  if (place === null || text === undefined) return;
  edits.set(place, text);
  showImproved(place, text);
}

// --- building --------------------------------------------------------------------------------------------------------

for (const [place, pane] of $$("#panes .label-pane").entries()) {
  const editor = pane.querySelector(".label-editor");
  editor.addEventListener("click", (event) => {
    const what = event.target.closest("[data-editor]")?.dataset.editor;
    if (what) finishEdit(place, what === "reset");
  });
  editor.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) finishEdit(place);
  });
}

rationale.hidden = asks.rationale === "off";
rationale.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) $("#pair").focus({ preventScroll: true });
});
$("#tags").hidden = asks.tags.length === 0;
$("#tags").append(...asks.tags.map((tag) => element("label", { className: "label-tag" }, element("input", { type: "checkbox", value: tag }), tag)));
