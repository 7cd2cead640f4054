// The comparison screen. Pairs come as leases from the API, two at a time: one is shown, the next waits, so that a key
// press paints it at once. A judgment goes to the outbox first and to the server from there.
import { ApiError, postJSON, requestHeaders, showError } from "./api.js";
import { newKey, Outbox } from "./outbox.js";

const $ = (selector) => document.querySelector(selector);
const $$ = (selector) => [...document.querySelectorAll(selector)];
const config = JSON.parse($("#label-config").textContent);
const { strings, urls } = config;
const panes = $$("#pair .label-pane");
const outbox = new Outbox(config.person);

const IDLE_MS = 10 * 60_000; // after this long without a sign of life, leases are left to run out
const RETRY_MS = [1_000, 2_000, 5_000, 10_000, 30_000];
const POLL_MS = { writing: 3_000, with_others: 10_000, finished: 30_000, empty: 30_000, paused: 30_000 };

let current = null; // the lease on screen
let ahead = []; // leases that come next
let history = []; // client keys that can be undone, newest last
let judged = new Set(); // leases judged here: never shown again unless undone
let seen = new Set(); // panes of this pair that were in view
let shownMs = 0; // how long this pair was visible, up to visibleSince
let visibleSince = 0;
let leaseSeconds = 120;
let lastActivity = Date.now();
let failures = 0;
let timer = null; // the next look, when there is nothing to show or nobody answers
let isReady = false;
let isUndoing = false;

// --- showing ---------------------------------------------------------------------------------------------------------

function show(lease) {
  current = lease;
  $("#pair").hidden = !lease;
  showBar();
  if (!lease) return;
  showState(null);
  $("#turns").replaceChildren(...lease.messages.map(turn));
  foldEarlier(lease.messages.length > 1);
  $("#excerpt").textContent = lease.messages.at(-1).text;
  lease.responses.forEach((response, side) => setHtml(panes[side].querySelector(".prose"), response.html));
  seen = new Set();
  shownMs = 0;
  visibleSince = performance.now();
  setReady(false);
  setTimeout(() => current === lease && setReady(true), config.minDwellMs);
  scrollTo({ top: 0, behavior: "instant" });
  $(".label-thread").scrollTop = $(".label-thread").scrollHeight;
  for (const pane of panes) {
    observer.unobserve(pane.firstElementChild); // observing anew reports at once what is in view
    observer.observe(pane.firstElementChild);
  }
}

/** Before the minimal dwell nothing can be chosen. Not `disabled`: a focused button would lose its focus. */
function setReady(value) {
  isReady = value;
  for (const button of $$("#bar [data-verdict]")) button.setAttribute("aria-disabled", String(!value));
}

/** Only for HTML that our server rendered and sanitised; everything else is text. */
function setHtml(element, html) {
  element.innerHTML = html;
}

function turn(message) {
  const element = document.createElement("div");
  const role = document.createElement("span");
  const body = document.createElement("div");
  element.className = `label-turn label-turn-${message.role}`;
  role.className = "label-role";
  role.textContent = config.roles[message.role];
  body.className = "prose";
  body.dir = "auto";
  setHtml(body, message.html);
  element.append(role, body);
  return element;
}

/** Of a longer conversation only the last turn is shown at first. */
function foldEarlier(isFolded) {
  const earlier = [...$("#turns").children].slice(0, -1);
  for (const element of earlier) element.hidden = isFolded;
  $("#turns").classList.toggle("is-single", earlier.length === 0);
  $("#earlier").hidden = !isFolded || earlier.length === 0;
  $("#earlier").textContent = earlier.length === 1 ? strings.earlierOne : strings.earlier.replace("%(n)s", earlier.length);
}

function showState(name) {
  for (const element of $$("[data-state]")) element.hidden = element.dataset.state !== name;
}

function showProgress({ judgments, wanted, mine }) {
  $("#progress").max = Math.max(1, wanted);
  $("#progress").value = judgments;
  const values = { "%(done)s": judgments, "%(wanted)s": wanted, "%(mine)s": mine };
  const text = strings.count.replace(/%\(\w+\)s/g, (name) => values[name]);
  for (const element of $$("[data-counts]")) element.textContent = text;
}

/** A word in the bar, also for screen readers; it fades by itself. */
function say(message) {
  const word = document.createElement("span");
  word.textContent = message;
  $("#status").replaceChildren(word);
}

function showNote(message, href = "") {
  const note = $("#note");
  note.hidden = !message;
  note.replaceChildren(message);
  if (href) note.append(" ", Object.assign(document.createElement("a"), { href, textContent: strings.login }));
  showBar();
}

/** Without a pair the bar holds what still matters: undo, and a note. */
function showBar() {
  $("#undo").disabled = history.length === 0;
  $("#bar").classList.toggle("is-idle", !current);
  $("#bar").hidden = !current && history.length === 0 && $("#note").hidden;
}

const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) seen.add(panes.indexOf(entry.target.parentElement));
  markPane();
});

/** Where responses are stacked, the numbers in the bar say which one is being read. */
function markPane() {
  const isStacked = panes[1].offsetTop > panes[0].offsetTop;
  const side = panes[1].getBoundingClientRect().top < innerHeight / 2 ? 1 : 0;
  $$("#bar [data-pane]").forEach((button, number) => button.setAttribute("aria-current", isStacked && number === side));
}

function focusPane(side) {
  panes[side].focus({ preventScroll: true });
  panes[side].scrollIntoView({ block: "start", behavior: "smooth" });
}

// --- judging ---------------------------------------------------------------------------------------------------------

const visibleMs = () => Math.round(shownMs + (document.hidden ? 0 : performance.now() - visibleSince));

function decide(button) {
  if (!current || isUndoing || !isReady) return;
  if (button.dataset.verdict !== "skip" && seen.size < panes.length) {
    say(strings.readBoth);
    return;
  }
  const { verdict, side, strength } = button.dataset;
  const body = {
    lease: current.id,
    client_key: newKey(),
    verdict,
    order: current.order,
    shown_ms: visibleMs(),
  };
  if (verdict === "preference") body.choice = current.order[Number(side)];
  if (strength) body.strength = Number(strength);
  outbox.add(body, current);
  history.push(body.client_key);
  judged.add(current.id);
  flash(button);
  showBar();
  next();
  sync();
}

function flash(button) {
  button.classList.add("is-chosen");
  setTimeout(() => button.classList.remove("is-chosen"), 350);
}

function next() {
  show(ahead.shift() ?? null);
  if (!current) showState("loading");
}

async function undo() {
  if (isUndoing) return;
  const key = history.pop();
  showBar();
  if (!key) return void say(strings.nothingToUndo);
  isUndoing = true;
  try {
    await syncing; // either it is saved by then, or it is still in the outbox
    const waiting = outbox.get(key);
    outbox.remove(key);
    const lease = waiting ? waiting.lease : (await postJSON(urls.undo, { client_key: key })).lease;
    comeBack(lease);
  } catch (error) {
    if (error instanceof ApiError && error.isTemporary) history.push(key);
    showError(error);
  } finally {
    isUndoing = false;
    showBar();
  }
}

function comeBack(lease) {
  say(lease ? strings.undone : strings.undoneGone);
  if (!lease) return void sync();
  judged.delete(lease.id);
  if (current) ahead.unshift(current);
  show(lease);
}

// --- the server ------------------------------------------------------------------------------------------------------

let syncing = Promise.resolve();
let isSyncing = false;
let isAgain = false;

/** Sends what waits in the outbox, then asks for pairs. One at a time; asked for meanwhile, it runs once more. */
function sync() {
  if (isSyncing) isAgain = true;
  else syncing = run();
  return syncing;
}

async function run() {
  isSyncing = true;
  clearTimeout(timer);
  try {
    do {
      isAgain = false;
      await sendAll();
      if (ahead.length === 0) await refill();
    } while (isAgain);
    failures = 0;
  } catch (error) {
    handleFailure(error);
  } finally {
    isSyncing = false;
  }
}

async function sendAll() {
  for (let waiting = outbox.first(); waiting; waiting = outbox.first()) {
    try {
      await postJSON(urls.judge, waiting.body);
      saved(waiting.body);
    } catch (error) {
      if (!(error instanceof ApiError) || error.isTemporary || error.needsLogin) throw error;
      history = history.filter((key) => key !== waiting.body.client_key); // refused for good: say why, go on
      showError(error);
    }
    outbox.remove(waiting.body.client_key);
  }
}

function saved(body) {
  const isBack = !$("#note").hidden;
  showNote("");
  if (isBack) say(strings.sent);
  else say(body.verdict === "skip" ? strings.skipped : strings.saved);
}

async function refill() {
  const answer = await postJSON(urls.claim, { n: 2 });
  leaseSeconds = answer.lease_seconds;
  if (history.length === 0) history = answer.undoable; // after a reload
  showBar();
  showProgress(answer.progress);
  const isKnown = (lease) => lease.id === current?.id || judged.has(lease.id) || outbox.hasLease(lease.id);
  ahead = answer.leases.filter((lease) => !isKnown(lease));
  showNote("");
  if (current) return;
  if (ahead.length) {
    next();
  } else if (outbox.size === 0) {
    showState(answer.state === "ready" ? "with_others" : answer.state);
    timer = setTimeout(sync, POLL_MS[answer.state] ?? 10_000);
  }
}

function handleFailure(error) {
  if (!(error instanceof ApiError)) throw error;
  $("#status").replaceChildren();
  if (error.needsLogin) showNote(strings.loginAgain, `${config.loginUrl}?next=${encodeURIComponent(location.pathname)}`);
  else if (error.isTemporary && (outbox.size || current)) showNote(strings.offline);
  if (!current) {
    showState("failed");
    $("#failure").textContent = error.message;
  }
  const delay = RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)];
  if (error.isTemporary) timer = setTimeout(sync, delay);
}

async function renew() {
  if (document.hidden || Date.now() - lastActivity > IDLE_MS) return;
  for (const lease of [current, ...ahead].filter(Boolean)) {
    try {
      await postJSON(urls.renew.replace(config.nobody, lease.id));
    } catch (error) {
      if (error instanceof ApiError && [404, 409].includes(error.status)) loseLease(lease);
    }
  }
  heartbeat = setTimeout(renew, (leaseSeconds * 1000) / 3);
}

function loseLease(lease) {
  ahead = ahead.filter((other) => other.id !== lease.id);
  if (current?.id !== lease.id) return;
  say(strings.lost);
  next();
  sync();
}

// --- people ----------------------------------------------------------------------------------------------------------

let heartbeat = setTimeout(renew, 30_000);

/** The letter or digit, whatever the keyboard's layout puts on the digit row. */
function keyOf(event) {
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
  return digit && !event.shiftKey ? digit[1] : event.key.toLowerCase();
}

function isForUs(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return false;
  return !event.target.closest?.("input, textarea, select, [contenteditable], [popover]");
}

const actions = {
  z: undo,
  backspace: undo,
  g: () => toggle("guidelines"),
  "?": () => toggle("help"),
  p: () => { $("#prompt").open = !$("#prompt").open; },
  t: () => foldEarlier(current.messages.length > 1 && $("#earlier").hidden),
  arrowleft: () => focusPane(document.dir === "rtl" ? 1 : 0),
  arrowright: () => focusPane(document.dir === "rtl" ? 0 : 1),
};

function toggle(id) {
  const dialog = document.getElementById(id);
  if (dialog.open) dialog.close();
  else if (!$("dialog[open]")) dialog.showModal();
}

document.addEventListener("keydown", (event) => {
  if (!isForUs(event)) return;
  const key = keyOf(event);
  const dialog = $("dialog[open]");
  const button = $(`#bar [data-key="${CSS.escape(key)}"]`);
  if (dialog && actions[key] && (key === "g" || key === "?")) actions[key]();
  else if (dialog || $("#bar").hidden && !["g", "?", "z", "backspace"].includes(key)) return;
  else if (button) decide(button);
  else if (actions[key]) actions[key]();
  else return;
  event.preventDefault();
});

$("#choices").addEventListener("click", (event) => {
  const button = event.target.closest("[data-verdict]");
  if (button) decide(button);
});
$("#undo").addEventListener("click", undo);
$("#retry").addEventListener("click", () => { showState("loading"); sync(); });
$("#earlier").addEventListener("click", () => foldEarlier(false));
for (const button of $$("[data-open]")) button.addEventListener("click", () => toggle(button.dataset.open));
for (const button of $$("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
for (const button of $$("#bar [data-pane]")) button.addEventListener("click", () => focusPane(Number(button.dataset.pane)));
for (const dialog of $$("dialog")) dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

addEventListener("scroll", markPane, { passive: true });
for (const name of ["pointermove", "keydown", "scroll", "touchstart"]) addEventListener(name, signOfLife, { passive: true });
addEventListener("online", sync);
addEventListener("focus", () => { if (!$("#note").hidden) sync(); }); // back from logging in elsewhere

function signOfLife() {
  const wasIdle = Date.now() - lastActivity > IDLE_MS;
  lastActivity = Date.now();
  if (wasIdle) revive();
}

function revive() {
  clearTimeout(heartbeat);
  renew();
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) shownMs += performance.now() - visibleSince;
  else {
    visibleSince = performance.now();
    revive();
  }
});

// A beacon cannot carry the CSRF header; a kept-alive fetch does the same and can.
addEventListener("pagehide", () => {
  for (const lease of [current, ...ahead].filter(Boolean)) {
    fetch(urls.release.replace(config.nobody, lease.id), { method: "POST", keepalive: true, headers: requestHeaders() });
  }
});
addEventListener("pageshow", (event) => { if (event.persisted) revive(); });

sync();
