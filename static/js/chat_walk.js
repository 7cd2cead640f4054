// Walking between siblings: the thread becomes that of another branch, and the address says which.
import { showError } from "./api.js";
import { chat, isBusy, isTyping, running, thread } from "./chat_page.js";
import { holding } from "./chat_scroll.js";
import { lastTurn, settled, start } from "./chat_streams.js";

let shown = addressOf(); // without the fragment

function addressOf() {
  return { path: location.pathname, query: location.search };
}

/** Show the branch of this address. The control that was used keeps the focus, and its turn its place on the screen. */
export async function walk(address, { link = null, isNew = true } = {}) {
  const url = new URL(address, location.href);
  const response = await fetch(url, { headers: { Accept: "text/html" } });
  if (!response.ok || response.redirected) return location.assign(url); // whatever is wrong, the page itself says it
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const place = link ? [...thread.children].indexOf(link.closest(".turn")) : -1;
  const walked = link?.closest("[data-walk]")?.dataset.walk;
  holding(() => thread.children[place], () => thread.replaceChildren(...page.getElementById("thread").children));
  if (isNew) history.pushState(null, "", url);
  shown = addressOf();
  start(thread);
  settled(thread);
  focusAgain(thread.children[place], walked, link?.dataset.step);
}

function focusAgain(turn, walked, step) {
  if (!turn || !walked) return;
  const nav = turn.querySelector(`[data-walk="${walked}"]`);
  (nav?.querySelector(`[data-step="${step}"]`) ?? nav?.querySelector("[data-step]"))?.focus({ preventScroll: true });
}

const follow = (link) => walk(link.getAttribute("href"), { link }).catch(() => location.assign(link.href));

thread.addEventListener("click", (event) => {
  const link = event.target.closest("[data-step]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (!isBusy()) follow(link);
});

// Alt and an arrow: the answers to the question in focus, else to the last one; with Shift, the question itself.
addEventListener("keydown", (event) => {
  if (!event.altKey || event.ctrlKey || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
  const turn = document.activeElement?.closest?.(".turn") ?? lastTurn();
  const link = turn?.querySelector(`[data-walk="${event.shiftKey ? "questions" : "answers"}"] [data-step="${event.key === "ArrowUp" ? "before" : "after"}"]`);
  if (!link || (isTyping(document.activeElement) && document.activeElement.value)) return; // there, the keys move in the text
  event.preventDefault();
  if (!isBusy()) follow(link);
});

addEventListener("popstate", () => {
  const { path, query } = addressOf();
  if (path === shown.path && query === shown.query) return; // another place on the page
  if (path !== shown.path || !chat.dataset.askUrl || running.size) location.reload();
  else walk(location.href, { isNew: false }).catch(showError);
});

/** The conversation has got an address of its own. */
export function moveTo(path) {
  history.pushState(null, "", path);
  shown = addressOf();
}

/** An address that names a branch must name the one that is shown. */
export function nameBranch(turn) {
  if (new URLSearchParams(location.search).has("at") && turn.dataset.shown) {
    history.replaceState(null, "", `?at=${turn.dataset.shown}#${turn.id}`);
    shown = addressOf();
  }
}
