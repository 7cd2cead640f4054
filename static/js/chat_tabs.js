// Two tabs on one conversation: each keeps its branch, and is told when the other went on.
import { $, chat, say, words } from "./chat_page.js";

const channel = "BroadcastChannel" in window ? new BroadcastChannel("chat") : null;

/** Something was added to this conversation here. */
export function tellTabs() {
  channel?.postMessage(chat.dataset.conversation);
}

channel?.addEventListener("message", ({ data }) => {
  if (!data || data !== chat.dataset.conversation) return;
  const link = Object.assign(document.createElement("a"), { href: location.pathname, textContent: words.show });
  $("elsewhere").replaceChildren(`${words.elsewhere} `, link);
  $("elsewhere").hidden = false;
  say(words.elsewhere);
});
