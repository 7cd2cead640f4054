// What the modules of the chat page share: its elements, what is being written, and small words to the reader.
import { toast } from "./api.js";

export const $ = (id) => document.getElementById(id);
export const chat = $("chat");
export const words = $("sentences").dataset; // what is said to the reader, translated
export const thread = $("thread");
export const content = $("content");
export const running = new Map(); // article → AbortController of its stream

/** True, with a word, while an answer is being written here, or is about to: what would leave it has to wait. */
export function isBusy() {
  const busy = running.size > 0 || thread.querySelector("[data-go-on]") !== null;
  if (busy) toast(words.stillWriting);
  return busy;
}

/** True while any answer of this page is being written, in another tab too. */
export const isUnfinished = () => running.size > 0 || thread.querySelector('[data-status="pending"], [data-status="streaming"], [data-go-on]') !== null;

export const say = (sentence) => {
  $("chat-status").textContent = sentence;
};

export const isTyping = (element) => element?.matches?.("input:not([type=radio], [type=checkbox]), textarea, select");

/** Values of this tab, by name and conversation. Storage may be switched off or full: then they live as long as the page. */
export const kept = {
  get(name) {
    try {
      return sessionStorage.getItem(`${name}:${location.pathname}`) ?? "";
    } catch {
      return "";
    }
  },
  set(name, value) {
    try {
      if (value) sessionStorage.setItem(`${name}:${location.pathname}`, value);
      else sessionStorage.removeItem(`${name}:${location.pathname}`);
    } catch {
      // see above
    }
  },
};

for (const dialog of document.querySelectorAll("dialog")) {
  let isPressedOutside = false; // a selection may end outside: only what begins there, too, closes
  const isOutside = ({ target, clientX, clientY }) => {
    const { left, right, top, bottom } = dialog.getBoundingClientRect();
    return target === dialog && (clientX < left || clientX > right || clientY < top || clientY > bottom);
  };
  dialog.addEventListener("pointerdown", (event) => {
    isPressedOutside = isOutside(event);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target.closest("[data-close]") || (isPressedOutside && isOutside(event))) dialog.close();
  });
}
