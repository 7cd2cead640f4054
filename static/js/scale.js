// Two responses, one choice: the buttons of the campaign's scale.
import { reachable, rove } from "./keys.js";
import { $, $$ } from "./page.js";

const group = $("#scale");
const buttons = $$("[data-verdict]", group);

/** The choice that an action of the keyboard, or a button, stands for: {verdict, action, side?, strength?}; or null. */
export function choiceOf(action) {
  const button = buttons.find((one) => one.dataset.action === action);
  if (!button) return null;
  const { verdict, side, strength } = button.dataset;
  if (verdict !== "preference") return { action, verdict };
  return { action, verdict, side: Number(side), strength: strength ? Number(strength) : null };
}

export function showScale(isShown) {
  group.hidden = !isShown;
}

/** Before the minimal dwell nothing can be chosen. Not `disabled`: a focused button would lose its focus. */
export function setScaleReady(isReady) {
  for (const button of buttons) button.setAttribute("aria-disabled", String(!isReady));
}

export function markChoice(action) {
  for (const button of buttons) button.setAttribute("aria-checked", String(button.dataset.action === action));
  reachable(group, buttons.find((one) => one.dataset.action === action) ?? buttons[0]);
}

/** A glimpse of what was just chosen, while the next pair is there already. */
export function flash(action) {
  const button = buttons.find((one) => one.dataset.action === action);
  if (!button) return;
  button.classList.add("is-chosen");
  setTimeout(() => button.classList.remove("is-chosen"), 350);
}

export function onChoice(choose) {
  group.addEventListener("click", (event) => {
    const button = event.target.closest("[data-verdict]");
    if (button) choose(choiceOf(button.dataset.action));
  });
  group.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.repeat) event.preventDefault(); // the screen confirms, or chooses what has the focus
  });
}

rove(group);
