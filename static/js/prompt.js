// The prompt: one strip above the responses, of a longer conversation the last turn, the rest one key away.
import { $, config, element, fill, strings } from "./page.js";
import { setHtml } from "./panes.js";

export function showPrompt(messages) {
  $("#turns").replaceChildren(...messages.map(turn));
  foldEarlier(messages.length > 1);
  $("#excerpt").textContent = messages.at(-1).text.slice(0, 300);
  const thread = $(".label-thread");
  thread.scrollTop = thread.scrollHeight;
}

function turn(message) {
  const body = element("div", { className: "prose", dir: "auto" });
  setHtml(body, message.html);
  const role = element("span", { className: "label-role", textContent: config.roles[message.role] });
  return element("div", { className: `label-turn label-turn-${message.role}` }, role, body);
}

function foldEarlier(isFolded) {
  const earlier = [...$("#turns").children].slice(0, -1);
  for (const one of earlier) one.hidden = isFolded;
  $("#turns").classList.toggle("is-single", earlier.length === 0);
  $("#earlier").hidden = !isFolded || earlier.length === 0;
  $("#earlier").textContent = earlier.length === 1 ? strings.earlierOne : fill(strings.earlier, { n: earlier.length });
}

export const toggleThread = () => foldEarlier($("#earlier").hidden);
export const togglePrompt = () => { $("#prompt").open = !$("#prompt").open; };

$("#earlier").addEventListener("click", () => foldEarlier(false));
