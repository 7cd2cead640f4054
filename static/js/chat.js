// The chat page: the composer, and what begins when the page is there. The server renders every turn.
import { forgetErrors, postJSON, showError, toast } from "./api.js";
import { editLast } from "./chat_answers.js";
import "./chat_before_after.js";
import "./chat_choices.js";
import "./chat_gauge.js";
import "./chat_list.js";
import { $, chat, content, isTyping, isUnfinished, kept, running, thread, words } from "./chat_page.js";
import { toEnd } from "./chat_scroll.js";
import { settingsToStart } from "./chat_settings.js";
import { elementOf, lastTurn, start, stop } from "./chat_streams.js";
import { tellTabs } from "./chat_tabs.js";
import { closePicker, keepPicked, versions } from "./chat_versions.js";
import { moveTo } from "./chat_walk.js";
import { newKey } from "./outbox.js";

const composer = $("composer");
let sent = { text: "", key: "" }; // the same text, sent again after no answer came, is the same question

// --- asking ----------------------------------------------------------------------------------------------------------

async function ask(text) {
  if (text !== sent.text) sent = { text, key: newKey() };
  const body = { content: text, versions: versions(), key: sent.key };
  if (chat.dataset.askUrl) {
    append(await postJSON(chat.dataset.askUrl, { ...body, parent: lastTurn()?.dataset.shown || null }));
  } else {
    begin(await postJSON(chat.dataset.startUrl, { ...body, settings: settingsToStart() }));
  }
  sent = { text: "", key: "" };
}

/** A new conversation: the page becomes its page. */
function begin(started) {
  kept.set("draft", "");
  kept.set("version", ""); // of the empty page
  moveTo(started.url);
  keepPicked();
  chat.dataset.askUrl = started.ask_url;
  chat.dataset.conversation = started.id;
  $("settings-form").dataset.url = started.settings_url;
  [$("export-markdown").href, $("export-json").href] = started.export_urls;
  $("show-export").hidden = false;
  $("chat-title").textContent = started.title;
  document.title = document.title.replace(/^.* ·/, () => `${started.title} ·`);
  if (!$("search").value) $("conversations").innerHTML = started.conversations; // our server's
  append(started);
}

function append({ html }) {
  $("suggestions")?.remove();
  $("moved").hidden = $("elsewhere").hidden = true;
  const turn = elementOf(html);
  if ($(turn.id)) return; // the question had arrived before
  thread.append(turn);
  toEnd();
  start(turn);
  tellTabs();
}

composer.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = content.value;
  if (!text.trim() || composer.ariaBusy === "true") return;
  if (isUnfinished()) return toast(words.stillWriting);
  if (thread.querySelector("[data-choose-url]")) return toast(words.chooseFirst);
  closePicker();
  forgetErrors();
  composer.ariaBusy = "true";
  write(""); // at once: the next message may be typed while this one is sent
  try {
    await ask(text);
  } catch (error) {
    write(content.value ? `${text}\n${content.value}` : text);
    showError(error);
  } finally {
    composer.ariaBusy = "false";
    kept.set("draft", content.value);
  }
});

$("suggestions")?.addEventListener("click", (event) => {
  const button = event.target.closest("[data-suggestion]");
  if (!button) return;
  write(button.textContent);
  composer.requestSubmit();
});

// --- keys ------------------------------------------------------------------------------------------------------------

content.addEventListener("keydown", (event) => {
  if (event.isComposing || event.altKey) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    composer.requestSubmit();
  }
  if (event.key === "ArrowUp" && !content.value && !running.size) {
    event.preventDefault();
    editLast();
  }
});

addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape" && running.size) stop();
  if (isTyping(document.activeElement) || event.ctrlKey || event.altKey || event.metaKey) return;
  if (!["?", "/"].includes(event.key)) return;
  event.preventDefault();
  if (event.key === "/") content.focus();
  else $("keys-dialog").showModal();
});

$("show-keys").addEventListener("click", () => $("keys-dialog").showModal());

$("stop").addEventListener("click", () => {
  stop();
  content.focus();
});

// --- the field: it grows with its text, and the text survives a reload. It is kept for this tab only, so that nobody finds
// it on a shared computer ------------------------------------------------------------------------------------------------

function write(text) {
  content.value = text;
  fit();
}

/** Browsers that do not size the field by its content. */
function fit() {
  if (CSS.supports("field-sizing", "content")) return;
  content.style.blockSize = "auto";
  content.style.blockSize = `${content.scrollHeight}px`;
}

content.addEventListener("input", () => {
  kept.set("draft", content.value);
  fit();
});

write(content.value || kept.get("draft"));
if (!location.hash) toEnd();
start(thread);
