// The chat page. The server renders every turn; this sends questions, shows answers as they grow, and passes on choices.
import { ApiError, getJSON, postJSON, requestHeaders, showError, toast } from "./api.js";
import { storeChoice, storeRating } from "./chat_feedback.js";

const $ = (id) => document.getElementById(id);
const chat = $("chat");
const thread = $("thread");
const composer = $("composer");
const content = $("content");
const running = new Map(); // article → AbortController of its stream
const POLL_MS = 1000;
const CURRENT_MS = 10_000;

// --- streams ---------------------------------------------------------------------------------------------------------

/** Show an answer while it is written. Leaving the stream (stop, reload) ends the answer on the server too. */
async function follow(article) {
  const controller = new AbortController();
  const url = article.dataset.stream;
  delete article.dataset.stream;
  running.set(article, controller);
  showRunning();
  let end = null;
  try {
    for await (const { kind, data } of events(url, controller.signal)) {
      if (kind === "text") keepingPlace(() => show(article, data.html));
      if (kind === "end") end = data;
    }
  } catch (error) {
    if (error.name !== "AbortError" && !(error instanceof TypeError)) showError(error); // TypeError: the connection broke
  }
  running.delete(article);
  showRunning();
  await settle(article, end);
}

/** When the last answer of a turn ended, show the turn as the server has it. */
async function settle(article, end) {
  const turn = article.closest(".turn");
  article.setAttribute("aria-busy", "false");
  if (!turn || turn.querySelector("[data-stream]") || [...running.keys()].some((other) => turn.contains(other))) return;
  if (end) replaceTurn(turn, end.html);
  else await pollTurn(turn);
  $("chat-status").textContent = chat.dataset.answerReady;
}

/** An answer whose end we did not hear (stopped, another tab, a lost connection): ask until it is written. */
async function pollTurn(turn) {
  for (let attempt = 0; attempt < 600; attempt++) {
    try {
      const { html, is_finished: isFinished } = await getJSON(turn.dataset.url);
      if (isFinished) return replaceTurn(turn, html);
    } catch (error) {
      if (!(error instanceof ApiError) || !error.isTemporary) return showError(error);
      if (attempt === 5) toast(chat.dataset.lost, { kind: "error" });
    }
    await new Promise((resolve) => setTimeout(resolve, attempt < 3 ? 150 : POLL_MS));
  }
}

/** The server-sent events of a GET: {kind, data}. Comments (keep-alive) are left out. */
async function* events(url, signal) {
  const response = await fetch(url, { signal, headers: { ...requestHeaders(), Accept: "text/event-stream" } });
  if (!response.ok || response.redirected) {
    const status = response.redirected ? 401 : response.status;
    throw new ApiError($("toasts").dataset[status < 500 ? "forbidden" : "failed"], { status });
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    buffer += value;
    const parts = buffer.split("\n\n");
    buffer = parts.pop();
    for (const part of parts) {
      const event = /^event: (\w+)\ndata: (.*)$/.exec(part);
      if (event) yield { kind: event[1], data: JSON.parse(event[2]) };
    }
  }
}

function stop() {
  for (const controller of running.values()) controller.abort();
}

function showRunning() {
  $("stop").hidden = running.size === 0;
  $("send").hidden = running.size > 0;
}

// --- the thread ------------------------------------------------------------------------------------------------------

/** HTML comes from our server only, which has sanitised what the model wrote. */
function show(article, html) {
  article.querySelector("[data-text]").innerHTML = html;
}

function elementOf(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.querySelector(".turn");
}

function replaceTurn(turn, html) {
  const focused = turn.contains(document.activeElement);
  const fresh = elementOf(html);
  keepingPlace(() => turn.replaceWith(fresh));
  if (focused) content.focus({ preventScroll: true });
  start(fresh);
  return fresh;
}

function start(root) {
  for (const article of root.querySelectorAll("[data-stream]")) follow(article);
  const elsewhere = root.querySelector('[data-status="streaming"]');
  if (elsewhere) pollTurn(elsewhere.closest(".turn"));
}

/** Stay at the end of the page while it grows, unless the reader has scrolled up. */
function keepingPlace(change) {
  const page = document.scrollingElement;
  const isAtEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 120;
  change();
  if (isAtEnd) toEnd();
}

function toEnd() {
  document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
}

thread.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  try {
    if ("copy" in button.dataset) await copy(button.closest("article"));
    else if (button.dataset.rate) await rate(button);
    else if (button.dataset.regenerate) await regenerate(button);
    else if (button.dataset.choice) await choose(button);
  } catch (error) {
    showError(error);
  }
});

async function copy(article) {
  try {
    await navigator.clipboard.writeText(article.querySelector("[data-source]").content.textContent);
    toast(chat.dataset.copied, { kind: "ok", seconds: 2 });
  } catch {
    toast(chat.dataset.notCopied, { kind: "error" });
  }
}

/** Pressing a pressed thumb takes the rating back. */
async function rate(button) {
  const rating = button.getAttribute("aria-pressed") === "true" ? 0 : Number(button.dataset.rate);
  await postJSON(button.dataset.url, { rating });
  for (const other of button.parentElement.querySelectorAll("[data-rate]")) {
    other.setAttribute("aria-pressed", String(Number(other.dataset.rate) === rating));
  }
  const article = button.closest("article");
  if (article.dataset.status === "complete") await storeRating(article.dataset.answer, rating);
}

async function regenerate(button) {
  if (running.size) return;
  button.disabled = true;
  try {
    const turn = button.closest(".turn");
    const { html } = await postJSON(button.dataset.regenerate);
    while (turn.nextElementSibling) turn.nextElementSibling.remove(); // they replied to the other answer
    replaceTurn(turn, html);
    toEnd();
  } finally {
    button.disabled = false;
  }
}

// --- side by side ----------------------------------------------------------------------------------------------------

/** First the judgment, then the names: nobody learns who wrote what before the choice is stored. */
async function choose(button) {
  const box = button.closest("[data-choose-url]");
  const buttons = [...box.querySelectorAll("button")];
  for (const each of buttons) each.disabled = true;
  try {
    const choice = (await judge(box, button.dataset.choice)) ? button.dataset.choice : "none";
    const { html } = await postJSON(box.dataset.chooseUrl, { choice });
    replaceTurn(box.closest(".turn"), html);
  } finally {
    for (const each of buttons) each.disabled = false;
  }
}

/** True when it was stored. */
async function judge(box, choice) {
  if (choice === "none") return false;
  const { left, right, clientKey } = box.dataset;
  const isPreference = choice === "left" || choice === "right";
  const body = { messages: [left, right], client_key: clientKey, verdict: isPreference ? "preference" : choice };
  if (isPreference) body.choice = box.dataset[choice];
  return storeChoice(body);
}

$("toggle-compare").addEventListener("click", () => {
  const isOn = $("toggle-compare").getAttribute("aria-pressed") !== "true";
  $("toggle-compare").setAttribute("aria-pressed", String(isOn));
  $("compare").hidden = !isOn;
  if (isOn && $("version-one").value === $("version-two").value) {
    const other = [...$("version-two").options].find((option) => option.value !== $("version-one").value);
    if (other) $("version-two").value = other.value;
  }
  content.focus();
});

function versions() {
  return $("compare").hidden ? [] : [$("version-one").value, $("version-two").value];
}

// --- asking ----------------------------------------------------------------------------------------------------------

async function ask(text) {
  const body = { content: text, versions: versions() };
  if (chat.dataset.askUrl) {
    const parent = thread.lastElementChild?.dataset.shown || null;
    return append(await postJSON(chat.dataset.askUrl, { ...body, parent }));
  }
  const started = await postJSON(chat.dataset.startUrl, body);
  chat.dataset.askUrl = started.ask_url;
  forgetDraft();
  history.pushState(null, "", started.url);
  $("chat-title").textContent = started.title;
  document.title = document.title.replace(/^.* ·/, `${started.title} ·`);
  $("conversations").innerHTML = started.conversations;
  return append(started);
}

function append({ html }) {
  $("suggestions")?.remove();
  $("moved").hidden = true;
  const turn = elementOf(html);
  thread.append(turn);
  toEnd();
  start(turn);
}

composer.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = content.value;
  if (!text.trim() || running.size || composer.ariaBusy === "true") return;
  composer.ariaBusy = "true";
  content.value = ""; // at once: the next message may be typed while this one is sent
  try {
    await ask(text);
    saveDraft();
  } catch (error) {
    content.value = content.value ? `${text}\n${content.value}` : text;
    showError(error);
  } finally {
    composer.ariaBusy = "false";
  }
});

content.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  composer.requestSubmit();
});

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running.size && !document.querySelector("dialog[open]")) stop();
});

$("stop").addEventListener("click", () => {
  stop();
  content.focus();
});

$("suggestions")?.addEventListener("click", (event) => {
  const button = event.target.closest("[data-suggestion]");
  if (!button) return;
  content.value = button.textContent;
  composer.requestSubmit();
});

// --- drafts: kept for this tab, so that nobody finds them on a shared computer -----------------------------------------

const draftKey = () => `draft:${location.pathname}`;

function saveDraft() {
  try {
    if (content.value) sessionStorage.setItem(draftKey(), content.value);
    else sessionStorage.removeItem(draftKey());
  } catch {
    // storage is switched off or full: the draft lives as long as the page
  }
}

function restoreDraft() {
  try {
    content.value ||= sessionStorage.getItem(draftKey()) ?? "";
  } catch {
    // storage is switched off
  }
}

function forgetDraft() {
  try {
    sessionStorage.removeItem(draftKey());
  } catch {
    // storage is switched off
  }
}

content.addEventListener("input", saveDraft);

// --- which version answers -------------------------------------------------------------------------------------------

async function lookAtCurrent() {
  if (document.hidden) return;
  const badge = $("current");
  try {
    const { name, label, is_base: isBase } = await getJSON(chat.dataset.currentUrl);
    if (name === badge.dataset.name) return;
    badge.dataset.name = name;
    badge.textContent = label;
    badge.classList.toggle("badge-accent", !isBase);
    $("moved").textContent = chat.dataset.nowAnswering.replace("%s", label);
    $("moved").hidden = false;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error; // it is asked again soon
  }
}

setInterval(lookAtCurrent, CURRENT_MS);
addEventListener("visibilitychange", lookAtCurrent);

// --- conversations ---------------------------------------------------------------------------------------------------

$("toggle-list").addEventListener("click", () => {
  const isOpen = $("chat-list").classList.toggle("is-open");
  $("toggle-list").setAttribute("aria-expanded", String(isOpen));
});

$("conversations").addEventListener("click", (event) => {
  const row = event.target.closest("li");
  if (event.target.closest("[data-rename]")) rename(row);
  if (event.target.closest("[data-delete]")) {
    $("delete-form").action = row.dataset.deleteUrl;
    $("delete-dialog").showModal();
  }
});

$("delete-dialog").addEventListener("click", (event) => {
  if (event.target.closest("[data-close]") || event.target === $("delete-dialog")) $("delete-dialog").close();
});

/** The name becomes a field; Enter or leaving it saves, Escape does not. */
function rename(row) {
  const link = row.querySelector("a");
  const field = Object.assign(document.createElement("input"), { value: link.textContent, maxLength: 120, dir: "auto" });
  field.setAttribute("aria-label", chat.dataset.titleLabel);
  let isDone = false; // taking a focused field out of the page also blurs it
  const finish = async (isSaved) => {
    if (isDone) return;
    isDone = true;
    const title = field.value.trim();
    field.replaceWith(link);
    if (!isSaved || !title || title === link.textContent) return;
    try {
      link.textContent = (await postJSON(row.dataset.renameUrl, { title })).title;
      if (link.getAttribute("aria-current")) $("chat-title").textContent = link.textContent;
    } catch (error) {
      showError(error);
    }
  };
  field.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") finish(true).then(() => link.focus());
    if (event.key === "Escape") finish(false).then(() => link.focus());
  });
  field.addEventListener("blur", () => finish(true));
  link.replaceWith(field);
  field.select();
}

addEventListener("popstate", () => location.reload()); // back to the empty page after a first question

restoreDraft();
if (!location.hash) toEnd();
start(thread);
