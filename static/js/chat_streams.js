// Answers while they are written. The row in the database is the truth: whatever happens to the connection, what is shown
// in the end is the turn as the server has it.
import { ApiError, getJSON, postJSON, showError, toast } from "./api.js";
import { events } from "./chat_events.js";
import { $, running, say, thread, words } from "./chat_page.js";
import { equip, show } from "./chat_prose.js";
import { keepingPlace } from "./chat_scroll.js";

const POLL_MS = 1000;
const PATIENCE = 600; // attempts
const FIRST_PAUSE_MS = 150;
const LONGEST_PAUSE_MS = 5000;
const STOP_WAIT_MS = 1000; // longer, and the reader would be made to wait for the server
const DOUBLE_CLICK_MS = 400; // Stop stands where Send was: the second click of a pair is not meant for it
let stopTimer = 0;
const MOST_MISSES = 20;
const misses = new Map(); // id of a turn → how many of its streams in a row did not come
const stops = new WeakMap(); // article → its Stop, under way to the server
const listeners = new Set(); // called when a turn is as the server has it

export const whenSettled = (listener) => listeners.add(listener);
export const settled = (turn) => listeners.forEach((listener) => listener(turn));

/** Begin to show all that is to be written below `root`. */
export function start(root) {
  equip(root);
  for (const article of root.querySelectorAll("[data-stream]")) follow(article);
  const elsewhere = [...root.querySelectorAll('[data-status="streaming"]')].map((article) => article.closest(".turn"));
  for (const turn of new Set(elsewhere)) pollTurn(turn);
  for (const answers of root.querySelectorAll("[data-go-on]")) goOn(answers);
}

/** Answers that lost their reader a moment ago (a reload, a broken connection) go on when somebody looks at them again. Of
 *  several tabs one has it happen, and not more than a few times, which the server decides; the others are shown the end. */
async function goOn(answers) {
  const turn = answers.closest(".turn");
  await untilSeen();
  if (!turn.isConnected) return;
  try {
    return replaceTurn(turn, (await postJSON(answers.dataset.goOn)).html);
  } catch (error) {
    showError(error);
  }
  delete answers.dataset.goOn; // there is a button
  for (const article of answers.children) article.setAttribute("aria-busy", "false");
}

const untilSeen = () => new Promise((resolve) => {
  if (!document.hidden) resolve();
  else document.addEventListener("visibilitychange", resolve, { once: true });
});

/** Show an answer while it is written. Leaving the stream (stop, reload) ends it on the server too. */
async function follow(article) {
  const controller = new AbortController();
  const url = article.dataset.stream;
  delete article.dataset.stream;
  running.set(article, controller);
  showRunning();
  let end = null;
  try {
    for await (const { kind, data } of events(url, { signal: controller.signal })) {
      misses.delete(article.closest(".turn")?.id);
      if (kind === "text") keepingPlace(() => show(article.querySelector("[data-text]"), data.html));
      if (kind === "end") end = data;
    }
  } catch (error) {
    if (error.name !== "AbortError" && !(error instanceof TypeError)) showError(error); // TypeError: the connection broke
  }
  running.delete(article);
  showRunning();
  if (!end && !stops.has(article)) toast(words.lost, { kind: "error", seconds: 8 });
  await settle(article, end);
}

/** When the last answer of a turn ended, show the turn as the server has it. */
async function settle(article, end) {
  const turn = article.closest(".turn");
  article.setAttribute("aria-busy", "false");
  if (!turn || turn.querySelector("[data-stream]") || isRunning(turn)) return;
  // Of two sides, too: one whose Stop is under way yet would be taken for one that lost its reader.
  await Promise.all([...turn.querySelectorAll("article")].map((each) => stops.get(each)));
  if (end && !isWriting(end.status)) replaceTurn(turn, end.html);
  else await pollTurn(turn);
}

const isRunning = (turn) => [...running.keys()].some((article) => turn.contains(article));
const isWriting = (status) => status === "pending" || status === "streaming";

/** An answer whose end we did not hear (stopped, another tab, a lost connection): ask until it is written. One that waits for
 *  somebody to read it, since its stream did not come here, is followed again. */
async function pollTurn(turn) {
  const missed = misses.get(turn.id) ?? 0;
  if (missed) await growingPause(missed);
  for (let attempt = 0; attempt < PATIENCE && turn.isConnected; attempt++) {
    try {
      const { html, is_finished: isFinished } = await getJSON(turn.dataset.url);
      if (isFinished) return replaceTurn(turn, html);
      if (missed < MOST_MISSES && !isRunning(turn) && elementOf(html).querySelector("[data-stream]")) {
        misses.set(turn.id, missed + 1);
        return replaceTurn(turn, html);
      }
    } catch (error) {
      if (!isTemporary(error)) return showError(error);
    }
    await pause(attempt);
  }
}

const isTemporary = (error) => error instanceof ApiError && error.isTemporary;
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const pause = (attempt) => sleep(attempt < 3 ? FIRST_PAUSE_MS : POLL_MS);
const growingPause = (attempt) => sleep(Math.min(FIRST_PAUSE_MS * 2 ** attempt, LONGEST_PAUSE_MS));

export function stop() {
  for (const [article, controller] of running) {
    if (!stops.has(article)) stops.set(article, stopOne(article.dataset.stop, controller));
  }
}

/** Leaving is no Stop: the server hears of it first, or another tab could have the answer go on in between. */
async function stopOne(url, controller) {
  const told = tellStop(url);
  await Promise.race([told, sleep(STOP_WAIT_MS)]);
  controller.abort();
  await told;
}

/** The server is told even if the page is left right now. */
async function tellStop(url) {
  let notice = null;
  for (let attempt = 0; attempt < PATIENCE; attempt++) {
    try {
      await postJSON(url, {}, { keepalive: true });
      break;
    } catch (error) {
      if (!isTemporary(error)) {
        showError(error);
        break;
      }
    }
    if (attempt === 2) notice = toast(words.stopsLater, { kind: "error" });
    await growingPause(attempt);
  }
  notice?.remove();
}

function showRunning() {
  if (running.size && $("stop").hidden) {
    $("stop").disabled = true;
    clearTimeout(stopTimer);
    stopTimer = setTimeout(() => ($("stop").disabled = false), DOUBLE_CLICK_MS);
  }
  $("stop").hidden = running.size === 0;
  $("send").hidden = running.size > 0;
}

export function elementOf(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.querySelector(".turn");
}

/** Put a turn as the server has it in the place of the one shown, unless that is gone by now. Focus stays in its place, or
 *  goes to the composer. */
export function replaceTurn(turn, html) {
  if (!turn.isConnected) return turn;
  const fresh = elementOf(html);
  const held = turn.contains(document.activeElement) ? nameOf(document.activeElement) : null;
  const isWritten = fresh.querySelector('[aria-busy="true"]') === null;
  keepingPlace(() => turn.replaceWith(fresh));
  if (held !== null) (held && fresh.querySelector(held) ? fresh.querySelector(held) : $("content")).focus({ preventScroll: true });
  start(fresh);
  if (isWritten) say(fresh.querySelector("[data-left]") ? words.chooseNow : words.answerReady);
  settled(fresh);
  return fresh;
}

/** A selector for the same control in another rendering of the turn; "" when there may be none. */
function nameOf(element) {
  const answer = element.closest("article")?.dataset.answer;
  const name = ["data-copy", "data-facts", "data-edit", "data-continue"].find((each) => element.hasAttribute(each));
  if (name === "data-edit") return "[data-edit]";
  return name && answer ? `[data-answer="${answer}"] [${name}]` : "";
}

/** All turns from this one on are gone: the branch goes on from another place. */
export function cutAt(turn, isKept = true) {
  while (turn.nextElementSibling) turn.nextElementSibling.remove();
  if (!isKept) turn.remove();
}

export const lastTurn = () => thread.lastElementChild;
