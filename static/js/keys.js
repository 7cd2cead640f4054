// The keyboard: which key was meant, and whether it was meant for us.
import { keyName } from "./keynames.js";
import { $ } from "./page.js";

const REPEATABLE = new Set(["scroll_up", "scroll_down", "page_up", "page_down"]);
const TYPING = 'textarea, select, input:not([type="radio"], [type="checkbox"]), [contenteditable]';
const PRESSABLE = "button, a, summary, input, label";

function isForUs(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.keyCode === 229) return false;
  return !event.target.closest?.(`${TYPING}, [popover]`);
}

/** Enter and space press what has the focus, arrows move among radio buttons: that is the browser's. */
function isForTheControl(event, key) {
  const control = event.target.closest?.(PRESSABLE);
  if (!control) return false;
  if (key === "enter") return control.getAttribute("role") !== "radio" && control.tagName !== "INPUT";
  const isChoice = control.tagName === "INPUT" || control.getAttribute("role") === "radio";
  return key === "space" || (isChoice && key.startsWith("arrow"));
}

/**
 * Listens. `layers` are functions (key, event) → true when they took the key, "stop" when nobody else may have it; they
 * are asked in order. What they leave goes by `bindings()` (key → action) to `actions`, which return false to decline.
 */
export function listen({ layers, bindings, actions }) {
  document.addEventListener("keydown", (event) => {
    if (!isForUs(event)) return;
    const key = keyName(event);
    if (isForTheControl(event, key)) return;
    const name = bindings()[key];
    if (event.repeat && !REPEATABLE.has(name)) return;
    for (const layer of layers) {
      const taken = layer(key, event);
      if (taken === "stop") return;
      if (taken) return void event.preventDefault();
    }
    if (!actions[name] || isReading(event, name) || actions[name](event) === false) return;
    event.preventDefault();
  });
}

/** Where arrows choose, whoever went into a response with the Tab key scrolls there with them instead. */
const isReading = (event, name) =>
  name.startsWith("choose_") && event.key.startsWith("Arrow") && event.target.matches?.(".label-pane:focus-visible, .label-thread");

/** Arrow keys move among the buttons of a radio group; only Space, Enter or a click chooses. */
export function rove(group) {
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !event.target.matches('[role="radio"]') || event.ctrlKey || event.metaKey || event.altKey) return;
    const radios = [...group.querySelectorAll('[role="radio"]')];
    const isMirrored = document.dir === "rtl" && /Left|Right/.test(event.key);
    const next = radios.indexOf(document.activeElement) + (isMirrored ? -step : step);
    radios.at(next % radios.length)?.focus();
    event.preventDefault();
    event.stopPropagation();
  });
  group.addEventListener("focusin", (event) => {
    if (event.target.matches('[role="radio"]')) reachable(group, event.target);
  });
}

/** Exactly one radio of a group is in the Tab order. */
export function reachable(group, radio) {
  for (const other of group.querySelectorAll('[role="radio"]')) other.tabIndex = other === radio ? 0 : -1;
}

export function toggleDialog(id) {
  const dialog = document.getElementById(id);
  if (dialog.open) dialog.close();
  else if (!$("dialog[open]")) dialog.showModal();
}
