// What people say of answers goes to labeling as judgments, once they agreed to that; without it, nothing leaves the chat.
import { ApiError, getJSON, postJSON, request, showError, toast } from "./api.js";
import { chat, words } from "./chat_page.js";
import { newKey } from "./outbox.js";

const toggle = document.getElementById("consent");
const dialog = document.getElementById("consent-dialog");
const VERDICTS = { 1: "good", "-1": "bad", 0: "none" };
let hasConsent = null; // null: not known yet
let wasAsked = false; // on this page: whoever said no is not asked at every thumb

/** Stores a thumb (1, −1, or 0 for none any more) on the answer with this id. */
export async function storeRating(message, rating) {
  if (rating !== 0 && !(await mayStore())) return;
  if (rating === 0 && !(await knownConsent())) return;
  await postJSON(chat.dataset.ratingUrl, { message, client_key: newKey(), verdict: VERDICTS[rating] });
  if (rating !== 0) toast(words.saved, { kind: "ok" });
}

/** Stores a choice between two answers. True when it was stored; false when it was not, and why is said. */
export async function storeChoice(body) {
  if (!(await mayStore())) {
    toast(words.notStored);
    return false;
  }
  try {
    await postJSON(chat.dataset.comparisonUrl, body);
  } catch (error) {
    if (!(error instanceof ApiError) || ![400, 409].includes(error.status)) throw error;
    showError(error);
    return false;
  }
  toast(words.saved, { kind: "ok" });
  return true;
}

async function mayStore() {
  if (await knownConsent()) return true;
  if (wasAsked) return false;
  wasAsked = true;
  if (!(await ask())) return false;
  await setConsent(true);
  return true;
}

async function knownConsent() {
  if (hasConsent === null) show((await getJSON(chat.dataset.consentUrl)).consent_at !== null);
  return hasConsent;
}

/** True when the person said yes; closing the question in any other way is a no. */
function ask() {
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

async function setConsent(consent) {
  const answer = await request(chat.dataset.consentUrl, { method: "PUT", body: JSON.stringify({ consent }) });
  show(answer.consent_at !== null);
  return answer;
}

function show(consent) {
  hasConsent = consent;
  toggle.setAttribute("aria-checked", String(consent));
  toggle.inert = false;
}

toggle.addEventListener("click", async () => {
  try {
    const { retracted } = await setConsent(!hasConsent);
    wasAsked = false;
    toast(hasConsent ? words.consentGiven : words.consentWithdrawn.replace("%s", String(retracted)));
  } catch (error) {
    showError(error);
  }
});

knownConsent().catch(showError);
