// How much of what the model can read the shown branch fills.
import { ApiError, getJSON } from "./api.js";
import { $, chat, thread, words } from "./chat_page.js";
import { whenSettled } from "./chat_streams.js";

const NEARLY_FULL = 85; // percent
let size = null; // tokens; null: not known yet

async function update() {
  const used = Number([...thread.querySelectorAll("[data-tokens]")].at(-1)?.dataset.tokens ?? 0);
  if (used && !size) size = await contextSize();
  const percent = used && size ? Math.min(Math.round((used / size) * 100), 100) : 0;
  $("gauge").hidden = !percent;
  $("nearly-full").hidden = percent < NEARLY_FULL;
  if (!percent) return;
  $("gauge").querySelector("progress").value = percent;
  $("gauge").querySelector(".number").textContent = `${percent} %`;
  const label = words.contextLabel.replace("%s", String(percent));
  $("gauge").title = `${label} (${used} / ${size})`;
  $("gauge").setAttribute("aria-label", label);
}

async function contextSize() {
  try {
    return (await getJSON(chat.dataset.contextUrl)).tokens;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    return null; // it is asked again after the next answer
  }
}

whenSettled(update);
update();
