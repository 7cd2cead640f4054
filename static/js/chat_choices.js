// Two answers side by side, without names: one key or button chooses, then the names are shown.
import { postJSON, showError } from "./api.js";
import { storeChoice } from "./chat_feedback.js";
import { content, isTyping, thread } from "./chat_page.js";
import { keyName } from "./keynames.js";
import { elementOf, lastTurn, whenSettled } from "./chat_streams.js";
import { nameBranch, walk } from "./chat_walk.js";

const KEYS = { 1: "left", 2: "right", "=": "tie", 0: "both_bad", s: "none" };

/** First the judgment, then the names: nobody learns who wrote what before the choice is stored. */
async function choose(button) {
  const box = button.closest("[data-choose-url]");
  const buttons = [...box.querySelectorAll("button")];
  for (const each of buttons) each.disabled = true;
  try {
    const { choice } = button.dataset;
    const isStored = await judge(box, choice);
    const chosen = { choice, client_key: box.dataset.clientKey, is_stored: isStored };
    const turn = elementOf((await postJSON(box.dataset.chooseUrl, chosen)).html);
    nameBranch(turn);
    await walk(`?at=${turn.dataset.shown}`, { link: button, isNew: false }); // what follows the chosen one, too
    content.focus({ preventScroll: true });
  } finally {
    for (const each of buttons) each.disabled = false;
  }
}

/** True when it was stored. */
async function judge(box, choice) {
  if (choice === "none") return false;
  const { left, right, clientKey } = box.dataset;
  const isPreference = choice === "left" || choice === "right";
  const body = { messages: [left, right], client_key: clientKey, verdict: isPreference ? "preference" : choice };
  if (isPreference) body.choice = box.dataset[choice];
  return storeChoice(body);
}

thread.addEventListener("click", (event) => {
  const button = event.target.closest("[data-choice]");
  if (button) choose(button).catch(showError);
});

// One key is enough when both answers are there, unless the next message is being written.
whenSettled(() => {
  const group = lastTurn()?.querySelector("[data-choose-url]");
  if (group && !content.value && [content, document.body].includes(document.activeElement)) group.focus({ preventScroll: true });
});

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing || document.querySelector("dialog[open]")) return;
  if (isTyping(document.activeElement)) return;
  const button = lastTurn()?.querySelector(`[data-choice="${KEYS[keyName(event)]}"]`);
  if (!button || button.disabled) return;
  event.preventDefault();
  button.click();
});
