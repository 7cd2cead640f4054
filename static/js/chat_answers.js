// What can be done with a question or an answer: copy, rate, details, regenerate, continue, compare, edit.
import { postJSON, showError } from "./api.js";
import { storeRating } from "./chat_feedback.js";
import { $, content, isBusy, thread, words } from "./chat_page.js";
import { copy } from "./chat_prose.js";
import { keepingPlace, toEnd } from "./chat_scroll.js";
import { cutAt, elementOf, lastTurn, replaceTurn, start } from "./chat_streams.js";
import { tellTabs } from "./chat_tabs.js";
import { pickedVersion } from "./chat_versions.js";
import { nameBranch } from "./chat_walk.js";
import { newKey } from "./outbox.js";

const ACTIONS = {
  copy: (button) => copy(button.closest("article").querySelector("[data-source]").content.textContent),
  rate,
  facts: toggleFacts,
  regenerate,
  continue: goOn,
  edit: (button) => edit(button.closest(".turn")),
};

thread.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  const action = button && Object.keys(ACTIONS).find((name) => name in button.dataset);
  if (!action) return;
  try {
    await ACTIONS[action](button);
  } catch (error) {
    showError(error);
  }
});

/** Pressing a pressed thumb takes the rating back. */
async function rate(button) {
  const isPressed = button.getAttribute("aria-pressed") === "true";
  await setRating(button.closest("article"), isPressed ? 0 : Number(button.dataset.rate));
}

async function setRating(article, rating) {
  const thumbs = article.querySelectorAll("[data-rate]");
  await postJSON(thumbs[0].dataset.url, { rating });
  for (const thumb of thumbs) thumb.setAttribute("aria-pressed", String(Number(thumb.dataset.rate) === rating));
  await storeRating(article.dataset.answer, rating);
}

function toggleFacts(button) {
  const facts = $(button.getAttribute("aria-controls"));
  keepingPlace(() => {
    facts.hidden = !facts.hidden;
  });
  button.setAttribute("aria-expanded", String(!facts.hidden));
}

/** One more answer, alone or to be compared with this one. */
async function regenerate(button) {
  await once(button, async () => {
    const turn = button.closest(".turn");
    const { html } = await postJSON(button.dataset.regenerate, { version: pickedVersion() });
    cutAt(turn); // what follows replied to the other answer
    nameBranch(replaceTurn(turn, html));
    toEnd();
    tellTabs();
  });
}

async function goOn(button) {
  await once(button, async () => {
    await unrate(button.closest("article"));
    const { html } = await postJSON(button.dataset.continue);
    replaceTurn(button.closest(".turn"), html);
    tellTabs();
  });
}

/** A thumb, in another tab too, was for what is there so far. What training has used by now stays a judgment of that. */
async function unrate(article) {
  if (article.dataset.status !== "complete") return;
  try {
    await setRating(article, 0);
  } catch (error) {
    if (error.body?.error?.code !== "frozen") throw error;
  }
}

async function once(button, act) {
  if (isBusy() || button.disabled) return;
  button.disabled = true;
  try {
    await act();
  } finally {
    button.disabled = false;
  }
}

// --- editing a question: it is asked again, beside the one before -------------------------------------------------------

export function editLast() {
  const turn = lastTurn();
  if (turn) edit(turn);
}

function edit(turn) {
  if (isBusy() || turn.querySelector(".edit-form")) return;
  const asked = turn.querySelector(".asked");
  const form = $("edit-template").content.querySelector("form").cloneNode(true);
  const field = form.querySelector("textarea");
  field.value = turn.querySelector("[data-question]").textContent;
  field.setAttribute("aria-label", words.editLabel);
  const close = () => {
    form.remove();
    asked.hidden = false;
  };
  const leave = () => {
    close();
    turn.querySelector("[data-edit]").focus();
  };
  form.querySelector("[data-cancel]").addEventListener("click", leave);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    askEdited(turn, form, field.value).catch(showError);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") leave();
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  asked.hidden = true;
  asked.after(form);
  field.focus();
  field.setSelectionRange(field.value.length, field.value.length);
}

async function askEdited(turn, form, text) {
  if (isBusy() || form.dataset.sent || !text.trim()) return;
  form.dataset.sent = "true";
  form.dataset.key ||= newKey();
  try {
    const body = { content: text, parent: turn.dataset.parent || null, versions: [pickedVersion()], key: form.dataset.key };
    const { html } = await postJSON($("chat").dataset.askUrl, body);
    const fresh = elementOf(html);
    cutAt(turn);
    turn.replaceWith(fresh);
    nameBranch(fresh);
    start(fresh);
    toEnd();
    content.focus({ preventScroll: true });
    tellTabs();
  } finally {
    delete form.dataset.sent;
  }
}
