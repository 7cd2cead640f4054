// The list of conversations: search, pages, names, deleting.
import { getJSON, postJSON, showError } from "./api.js";
import { $, chat, words } from "./chat_page.js";

const SEARCH_MS = 180;
const list = $("conversations");
let timer = 0;
let asked = 0; // answers may come in another order than they were asked for

async function load({ after = "" } = {}) {
  const number = ++asked;
  const query = new URLSearchParams({ q: $("search").value, after, open: chat.dataset.conversation ?? "" });
  const { html, said } = await getJSON(`${chat.dataset.conversationsUrl}?${query}`);
  if (number !== asked) return;
  if (after) append(html);
  else list.innerHTML = html; // our server's
  $("search-status").textContent = said;
}

/** Another page: its first day may be the last one shown. */
function append(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  list.querySelector("[data-more]")?.remove();
  const last = [...list.querySelectorAll("[data-day]")].at(-1);
  const first = template.content.querySelector("[data-day]");
  const focus = template.content.querySelector("li a");
  if (last && first && last.dataset.day === first.dataset.day) {
    last.querySelector("ul").append(...first.querySelectorAll("li"));
    first.remove();
  }
  list.append(template.content);
  focus?.focus({ preventScroll: true });
}

$("search").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => load().catch(showError), SEARCH_MS);
});

$("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(timer);
  load().then(() => list.querySelector("li a")?.focus(), showError);
});

$("search").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown") {
    event.preventDefault();
    list.querySelector("li a")?.focus();
  }
  if (event.key !== "Escape") return;
  event.stopPropagation();
  if ($("search").value) {
    $("search").value = "";
    load().catch(showError);
  } else $("content").focus();
});

list.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !event.target.matches("li a") || event.altKey) return;
  const links = [...list.querySelectorAll("li a")];
  event.preventDefault();
  (links[links.indexOf(event.target) + step] ?? (step < 0 ? $("search") : event.target)).focus();
});

addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() !== "k" || !(event.ctrlKey || event.metaKey) || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  showList(true);
  $("search").select();
  $("search").focus();
});

const showOpen = () => list.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });

function showList(isOpen) {
  $("chat-list").classList.toggle("is-open", isOpen);
  if (isOpen) showOpen();
  $("toggle-list").setAttribute("aria-expanded", String(isOpen));
}

$("toggle-list").addEventListener("click", () => showList(!$("chat-list").classList.contains("is-open")));

// On phones the list lies over the conversation, until something else is touched.
addEventListener("pointerdown", (event) => {
  if (!event.target.closest("#chat-list, #toggle-list, dialog, .toasts")) showList(false);
});

$("chat-list").addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !$("chat-list").classList.contains("is-open")) return;
  showList(false);
  $("toggle-list").focus();
});

list.addEventListener("click", (event) => {
  const row = event.target.closest("li");
  if (event.target.closest("[data-more]")) load({ after: event.target.closest("[data-more]").dataset.more }).catch(showError);
  if (event.target.closest("[data-rename]")) rename(row);
  if (event.target.closest("[data-delete]")) {
    $("delete-form").action = row.dataset.deleteUrl;
    $("delete-form").elements.open.value = chat.dataset.conversation ?? "";
    $("delete-name").textContent = row.querySelector("[data-title]").textContent;
    $("delete-dialog").showModal();
  }
});

/** The name becomes a field; Enter or leaving it saves, Escape does not. */
function rename(row) {
  const link = row.querySelector("a");
  const name = link.querySelector("[data-title]");
  const field = Object.assign(document.createElement("input"), { value: name.textContent, maxLength: 120, dir: "auto" });
  field.setAttribute("aria-label", words.titleLabel);
  let isDone = false; // taking a focused field out of the page also blurs it
  const finish = async (isSaved) => {
    if (isDone) return;
    isDone = true;
    const title = field.value.trim();
    field.replaceWith(link);
    if (!isSaved || !title || title === name.textContent) return;
    try {
      name.textContent = (await postJSON(row.dataset.renameUrl, { title })).title;
      if (link.getAttribute("aria-current")) $("chat-title").textContent = name.textContent;
    } catch (error) {
      showError(error);
    }
  };
  field.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.isComposing) return;
    if (event.key === "Enter") finish(true).then(() => link.focus());
    if (event.key === "Escape") finish(false).then(() => link.focus());
  });
  field.addEventListener("blur", () => finish(true));
  link.replaceWith(field);
  field.select();
}

showOpen();
