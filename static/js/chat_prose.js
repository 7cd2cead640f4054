// Rendered answers: they grow in place, and their code can be copied and read to its end without a mouse. The HTML comes from our server only, which has
// sanitised what the model wrote.
import { toast } from "./api.js";
import { chat, words } from "./chat_page.js";

/** Make `element` hold `html`, touching only what differs: what is selected, scrolled or focused stays so. */
export function show(element, html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  morph(element, template.content);
  equip(element);
}

function morph(old, fresh) {
  const before = [...old.childNodes].filter((node) => !node.dataset?.added);
  const after = [...fresh.childNodes];
  after.forEach((node, i) => {
    const mine = before[i];
    if (!mine) old.append(node);
    else if (!isAlike(mine, node)) mine.replaceWith(node);
    else if (mine.nodeType === Node.TEXT_NODE) {
      if (mine.data !== node.data) mine.data = node.data;
    } else morph(mine, node);
  });
  for (const node of before.slice(after.length)) node.remove();
}

const ADDED = ["tabindex", "aria-level"]; // by `equip`

function isAlike(one, other) {
  if (one.nodeName !== other.nodeName || one.nodeType !== other.nodeType) return false;
  if (one.nodeType !== Node.ELEMENT_NODE) return true;
  const names = new Set([...one.getAttributeNames(), ...other.getAttributeNames()]);
  for (const name of ADDED) names.delete(name);
  return [...names].every((name) => one.getAttribute(name) === other.getAttribute(name));
}

/** Whatever the scripts add to prose below `root`, which is in the page. */
export function equip(root) {
  addCopyButtons(root);
  // What scrolls sideways can be focused, so that the arrow keys scroll it: not every browser does that by itself. Code always
  // can: it may come to scroll when the window is made narrower.
  for (const code of root.querySelectorAll(".prose pre > code")) code.tabIndex = 0;
  for (const box of root.querySelectorAll(".prose :is(table, math)")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
  // The headings of an answer are below its own, which is of the third level.
  for (const heading of root.querySelectorAll(".prose :is(h1, h2, h3, h4, h5, h6)")) {
    heading.setAttribute("aria-level", String(Math.min(Number(heading.localName[1]) + 3, 6)));
  }
}

/** A button on each block of code; pressing it copies the code. */
function addCopyButtons(root) {
  for (const pre of root.querySelectorAll("pre")) {
    if (pre.querySelector("[data-added]") || !pre.closest(".prose")) continue;
    const button = Object.assign(document.createElement("button"), { type: "button", className: "button button-quiet button-small copy-code" });
    button.dataset.added = "true";
    button.setAttribute("aria-label", words.copyCode);
    button.textContent = words.copyWord;
    pre.append(button);
  }
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(words.copied, { kind: "ok", seconds: 2 });
  } catch {
    toast(words.notCopied, { kind: "error" });
  }
}

chat.addEventListener("click", (event) => {
  const button = event.target.closest(".copy-code");
  if (button) copy((button.parentElement.querySelector("code") ?? button.parentElement.firstChild).textContent);
});
