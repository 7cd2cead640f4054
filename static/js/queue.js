// Pairs ahead, judgments behind. Two leases are held beside the one on screen, so that the next pair is in memory when it
// is wanted; a judgment goes to the outbox first and to the server from there.
import { ApiError, postJSON, requestHeaders, showError } from "./api.js";
import { Outbox } from "./outbox.js";
import { config, urls } from "./page.js";
import * as tabs from "./tabs.js";

const N_AHEAD = 2;
const IDLE_MS = 10 * 60_000; // after this long without a sign of life, leases are left to run out
const RETRY_MS = [1_000, 2_000, 5_000, 10_000, 30_000];
const POLL_MS = { writing: 3_000, with_others: 10_000, finished: 30_000, empty: 30_000, paused: 30_000 };

const outbox = new Outbox(config.person);
const judged = new Set(); // leases judged here: never shown again unless undone
const said = new Map(); // client key → what was posted, to put it back after an undo
let ahead = []; // leases that come next
let history = []; // client keys that can be undone, newest last
let leaseSeconds = 120;
let failures = 0;
let timer = null; // the next look, when there is nothing to show or nobody answers
let lastActivity = Date.now();
let isAway = false; // on a break: leases are left to run out

/** What the screen does when something happens; label.js sets all of them. */
export const on = { saved() {}, refused() {}, claimed() {}, nothing() {}, failed() {}, lost() {}, arrived() {}, current: () => null };

export const canUndo = () => history.length > 0;
export const takeNext = () => {
  const lease = ahead.shift() ?? null;
  tellHeld(lease);
  return lease;
};
export const putBack = (lease) => ahead.unshift(lease);

/** Keeps a judgment and sends it. */
export function post(body, lease) {
  outbox.add(body, lease);
  said.set(body.client_key, body);
  history.push(body.client_key);
  judged.add(lease.id);
  tabs.tellJudged(lease.id);
  return sync();
}

/** Takes the newest judgment back: {lease, body}, where lease is null when the pair is gone and body when it was made
 * before a reload. Undefined when there is nothing to take back.
 */
export async function takeBack() {
  const key = history.pop();
  if (!key) return undefined;
  try {
    await syncing; // either it is saved by then, or it is still in the outbox
    const waiting = outbox.get(key);
    outbox.takeBack(key);
    const lease = waiting ? waiting.lease : (await postJSON(urls.undo, { client_key: key })).lease;
    if (lease) judged.delete(lease.id);
    else sync();
    return { lease, body: said.get(key) ?? null };
  } catch (error) {
    if (error instanceof ApiError && error.isTemporary) history.push(key);
    showError(error);
    return { lease: undefined, body: null };
  }
}

// --- the server ------------------------------------------------------------------------------------------------------

let syncing = Promise.resolve();
let isSyncing = false;
let isAgain = false;

/** Sends what waits in the outbox, then asks for pairs. One at a time; asked for meanwhile, it runs once more. */
export function sync() {
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
      if (ahead.length < N_AHEAD) await refill();
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
      if (waiting.isUndo) await undoIfStored(waiting.body);
      else on.saved(waiting.body, await send(waiting.body));
    } catch (error) {
      if (!(error instanceof ApiError) || error.isTemporary || error.needsLogin) throw error;
      history = history.filter((key) => key !== waiting.body.client_key); // refused for good: say why, go on
      showError(error);
      on.refused(waiting.body);
    }
    outbox.remove(waiting.body.client_key);
  }
}

function send(body) {
  outbox.noteTried(body.client_key);
  return postJSON(urls.judge, body);
}

/** Of a judgment that was sent, but whose answer never came: the server may have it, or not. */
async function undoIfStored(body) {
  try {
    await postJSON(urls.undo, body);
  } catch (error) {
    if (error.status !== 404) throw error;
  }
}

async function refill() {
  const answer = await postJSON(urls.claim, { n: N_AHEAD + 1, undoable: history.length === 0 });
  leaseSeconds = answer.lease_seconds;
  if (history.length === 0) history = answer.undoable; // after a reload
  const isKnown = (lease) => lease.id === on.current()?.id || judged.has(lease.id) || outbox.hasLease(lease.id);
  ahead = answer.leases.filter((lease) => !isKnown(lease));
  tellHeld(on.current());
  on.claimed(answer);
  if (on.current()) return;
  if (ahead.length) on.arrived();
  else if (outbox.size === 0) {
    on.nothing(answer.state === "ready" ? "with_others" : answer.state);
    timer = setTimeout(sync, POLL_MS[answer.state] ?? 10_000);
  }
}

function handleFailure(error) {
  if (!(error instanceof ApiError)) throw error;
  on.failed(error, outbox.size);
  const delay = RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)];
  if (error.isTemporary) timer = setTimeout(sync, delay);
}

// --- holding ---------------------------------------------------------------------------------------------------------

let heartbeat = setTimeout(renew, 30_000);
const held = () => [on.current(), ...ahead].filter((lease) => lease?.id);
const tellHeld = (current) => tabs.tellHeld([current, ...ahead].flatMap((lease) => lease?.id ?? []));

async function renew() {
  clearTimeout(heartbeat);
  if (isAway || document.hidden || Date.now() - lastActivity > IDLE_MS) return;
  heartbeat = setTimeout(renew, (leaseSeconds * 1000) / 3);
  for (const lease of held()) {
    try {
      await postJSON(urls.renew.replace(config.nobody, lease.id));
    } catch (error) {
      if (error instanceof ApiError && [404, 409].includes(error.status)) drop(lease.id, on.lost);
    }
  }
}

/** A lease that is no longer ours to show. */
function drop(id, tell) {
  ahead = ahead.filter((other) => other.id !== id);
  if (on.current()?.id === id) tell();
}

tabs.onJudgedElsewhere((id) => {
  judged.add(id);
  drop(id, () => on.lost(true));
});

export function signOfLife() {
  const wasIdle = Date.now() - lastActivity > IDLE_MS;
  lastActivity = Date.now();
  if (wasIdle) renew();
}

/** Nobody is there, or somebody is back. */
export function setAway(value) {
  isAway = value;
  if (!isAway) renew();
}

// A beacon cannot carry the CSRF header; a kept-alive fetch does the same and can.
addEventListener("pagehide", () => {
  for (const lease of held().filter((one) => !tabs.isHeldElsewhere(one.id))) {
    fetch(urls.release.replace(config.nobody, lease.id), { method: "POST", keepalive: true, headers: requestHeaders() });
  }
  tabs.tellHeld([]);
});
addEventListener("pageshow", (event) => { if (event.persisted) renew(); });
addEventListener("online", sync);
document.addEventListener("visibilitychange", () => { if (!document.hidden) renew(); });
