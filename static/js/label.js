// The comparison screen: what is shown, what was chosen, and when it is over. Each part has a module of its own.
import { showError } from "./api.js";
import { attention } from "./attention.js";
import { countJudgment, nJudged, uncountJudgment } from "./breaks.js";
import { listen, toggleDialog } from "./keys.js";
import { newKey } from "./outbox.js";
import { $, $$, config, element, fill, say, strings } from "./page.js";
import * as panes from "./panes.js";
import * as practice from "./practice.js";
import { showPrompt, togglePrompt, toggleThread } from "./prompt.js";
import * as queue from "./queue.js";
import * as ranking from "./ranking.js";
import * as reasons from "./reasons.js";
import * as rows from "./rows.js";
import * as scale from "./scale.js";

let current = null; // the lease on screen
let chosen = null; // the choice that waits for its confirmation: {verdict, action?, side?, strength?, ranks?}
let isReady = false;
let isUndoing = false;
let awaited = null; // in practice: the client key whose answer is awaited
let isPracticeOver = false;

// --- showing ---------------------------------------------------------------------------------------------------------

/** Shows a comparison, or none; `said` is what was said of it before, when that was taken back. */
function show(lease, said = null) {
  const hadFocus = $("#bar").contains(document.activeElement) || document.activeElement === $("#pair");
  current = lease;
  chosen = null;
  awaited = null;
  $("#pair").hidden = !lease;
  rows.closeRows();
  practice.hideFeedback();
  showBar();
  if (!lease) return;
  showState(null);
  panes.showPanes(lease.responses);
  showPrompt(lease.messages);
  practice.showPracticeNote(lease.practice);
  scale.showScale(lease.order.length === 2);
  scale.markChoice(null);
  ranking.startRanking(lease.order.length, said?.ranks ? lease.order.map((id) => said.ranks[id]) : null);
  reasons.startReasons(lease.responses, lease.order, said ?? {});
  rows.setFlags(said?.flags ?? []);
  if (said) restore(said);
  setReady(false);
  setTimeout(() => current === lease && setReady(true), config.minDwellMs);
  $("#pair").setAttribute("aria-label", fill(strings.pair, { n: nJudged() + 1 }));
  scrollTo({ top: 0, behavior: "instant" });
  if (hadFocus) $("#pair").focus({ preventScroll: true });
}

/** Puts a choice back as it was before it was taken back; where nothing is confirmed, it is only marked. */
function restore(said) {
  const side = current.order.indexOf(said.choice);
  const isSame = (one) => one.verdict === said.verdict && (one.side ?? -1) === side && (one.strength ?? null) === (said.strength ?? null);
  const known = $$("#scale [data-action]").map((button) => scale.choiceOf(button.dataset.action));
  const choice = ranking.isRanking() ? ranking.ranking() : (known.find(isSame) ?? null);
  if (!choice) return;
  if (choice.action) scale.markChoice(choice.action);
  if (!reasons.asksAnything() && !ranking.isRanking()) return;
  chosen = choice;
  reasons.restoreEdit(choice, said.edit);
  if (reasons.asksAnything()) reasons.openReasons(choice);
}

function setReady(value) {
  isReady = value;
  scale.setScaleReady(value);
  $("#rank-confirm").setAttribute("aria-disabled", String(!value || !chosen));
}

function showState(name) {
  for (const state of $$("[data-state]")) state.hidden = state.dataset.state !== name;
}

let nMine = 0; // the server's count may be some seconds old

function showProgress({ judgments, wanted, mine }) {
  nMine = Math.max(nMine, mine);
  const done = Math.min(Math.max(wanted, judgments), judgments + nMine - mine); // checks are among mine, not among those wanted
  $("#progress").max = Math.max(1, wanted);
  $("#progress").value = done;
  for (const counts of $$("[data-counts]")) counts.textContent = fill(strings.count, { done, wanted, mine: nMine });
}

function showNote(message, href = "") {
  $("#note").hidden = !message;
  $("#note").replaceChildren(message);
  if (href) $("#note").append(" ", element("a", { href, textContent: strings.login }));
  showBar();
}

/** Without a pair the bar holds what still matters: undo, and a note. */
function showBar() {
  $("#undo").disabled = !queue.canUndo();
  $("#bar").classList.toggle("is-idle", !current);
  if (!current) $("#reasons").hidden = true;
  $("#bar").hidden = !current && !queue.canUndo() && $("#note").hidden;
}

// --- choosing --------------------------------------------------------------------------------------------------------

/** Whether a choice is accepted now; says why not where that is no accident. */
function isOpenToChoice() {
  if (!current || isUndoing || !isReady || awaited) return false;
  if (panes.areAllSeen()) return true;
  say(strings.readBoth);
  return false;
}

/** One of two: with nothing more to ask that is all, else it waits for its reasons; the same choice again confirms. */
function choose(choice, since = performance.now()) {
  if (!choice || !isOpenToChoice()) return;
  const isSame = chosen?.action === choice.action;
  chosen = choice;
  if (!reasons.asksAnything() || isSame) return void confirm(since);
  scale.markChoice(choice.action);
  reasons.openReasons(choice);
}

/** A ranking is complete, or changed. */
function rank() {
  chosen = ranking.ranking();
  $("#rank-confirm").setAttribute("aria-disabled", String(!chosen || !isReady));
  if (chosen && reasons.asksAnything()) reasons.openReasons(chosen);
  else reasons.closeReasons();
}

function confirm(since = performance.now()) {
  if (awaited || practice.isFeedbackShown() || !current) return goOn();
  if (!chosen) return void say(ranking.isRanking() ? strings.rankAll : strings.chooseFirst);
  if (!isOpenToChoice()) return;
  reasons.finishEdits();
  if (reasons.isIncomplete(chosen)) return;
  commit({ ...said(chosen), ...reasons.reasonsFor(chosen, current.order) }, since);
}

/** A choice as it is posted. */
function said({ verdict, side, strength, ranks }) {
  if (verdict !== "preference") return { verdict };
  if (ranks) return { verdict, ranks: Object.fromEntries(ranks.map((rank, place) => [current.order[place], rank])) };
  return { verdict, choice: current.order[side], ...(strength ? { strength } : {}) };
}

function skip(reason) {
  if (!current || isUndoing || awaited) return;
  commit({ verdict: "skip", ...(reason ? { skip_reason: reason } : {}) }, performance.now());
}

function commit(choice, since) {
  const lease = current;
  const seen = attention.report();
  const flags = rows.flagged();
  const body = { ...choice, ...seen, ...(flags.length ? { flags } : {}), lease: lease.id, client_key: newKey(), order: lease.order };
  const action = chosen?.action;
  if (choice.verdict !== "skip") {
    countJudgment(seen.shown_ms);
    if (!lease.practice) nMine++;
  }
  if (lease.practice) {
    awaited = body.client_key;
    rows.closeRows();
    reasons.closeReasons();
    setReady(false);
  } else {
    next(since);
  }
  if (action) scale.flash(action);
  queue.post(body, lease);
  showBar();
}

/** The next comparison, painted at once when it is in memory; how long that took is measured from the key press. */
function next(since = null) {
  show(queue.takeNext());
  if (!current) return void showState("loading");
  if (since === null) return;
  requestAnimationFrame(() => setTimeout(() => performance.measure("label:next", { start: since, end: performance.now() })));
}

async function undo() {
  if (isUndoing || awaited || practice.isFeedbackShown()) return;
  if (!queue.canUndo()) return void say(strings.nothingToUndo);
  isUndoing = true;
  const back = await queue.takeBack();
  isUndoing = false;
  if (back?.lease) {
    say(strings.undone);
    if (back.body && back.body.verdict !== "skip") {
      uncountJudgment();
      if (!back.lease.practice) nMine--;
    }
    if (current) queue.putBack(current);
    show(back.lease, back.body);
  } else if (back?.lease === null) {
    say(strings.undoneGone);
  }
  showBar();
}

// --- practice --------------------------------------------------------------------------------------------------------

/** From feedback to the next pair, or to the summary; from there to the work. */
function goOn() {
  if (awaited && !practice.isFeedbackShown()) return; // the answer is on its way
  if (!current) return void ($("[data-state='practised']").hidden || start());
  const isEnd = isPracticeOver;
  isPracticeOver = false;
  if (!isEnd) return next();
  practice.showSummary();
  show(null);
  showState("practised");
  $("#practice-end").focus({ focusVisible: true });
}

function start() {
  next();
  queue.sync();
}

function answered(body, told) {
  if (awaited !== body.client_key) return;
  practice.showFeedback(told, body.verdict, body.order);
  isPracticeOver = told.left === 0;
}

// --- what the queue tells --------------------------------------------------------------------------------------------

Object.assign(queue.on, {
  current: () => current ?? ($("[data-state='practised']").hidden ? null : { id: null }),
  saved(body, answer) {
    const isBack = !$("#note").hidden;
    showNote("");
    if (answer?.practice) return answered(body, answer.practice);
    const sentence = body.verdict === "skip" ? strings.skipped : strings.saved;
    if (answer?.surplus) say(strings.surplus);
    else say(isBack ? strings.sent : sentence, { key: config.shown.undo });
  },
  claimed(answer) {
    showBar();
    showProgress(answer.progress);
    showNote("");
  },
  refused(body) {
    if (awaited === body.client_key) next();
  },
  arrived: () => next(),
  nothing: (state) => showState(state),
  lost(isElsewhere = false) {
    say(isElsewhere ? strings.elsewhere : strings.lost);
    next();
    queue.sync();
  },
  failed(error, nWaiting) {
    $("#status").replaceChildren();
    const back = `${config.loginUrl}?next=${encodeURIComponent(location.pathname)}`;
    if (error.needsLogin) showNote(strings.loginAgain, back);
    else if (error.isTemporary && (nWaiting || current)) showNote(strings.offline);
    else showError(error);
    if (awaited && !practice.isFeedbackShown()) next(); // no feedback without a network; the judgment is kept
    if (current) return;
    showState("failed");
    $("#failure").textContent = error.message;
  },
});

// --- people ----------------------------------------------------------------------------------------------------------

const mirrored = document.dir === "rtl" ? -1 : 1;
const chooseBy = (name) => (event) => (current && !ranking.isRanking() ? choose(scale.choiceOf(name), event.timeStamp) : false);
const actions = {
  ...Object.fromEntries($$("#scale [data-action]").map(({ dataset }) => [dataset.action, chooseBy(dataset.action)])),
  confirm: confirmOrChoose,
  skip: () => (rows.openRow() === "skip" ? skip("") : current && rows.toggleRow("skip")),
  flag: () => current && rows.toggleRow("flag"),
  undo,
  both_bad: judgeBothBad,
  edit: () => current && reasons.editBest(chosen),
  reasons: () => (chosen && reasons.asksAnything() ? reasons.focusReasons() : say(reasons.asksAnything() ? strings.chooseFirst : strings.noReasons)),
  criteria: () => (chosen ? reasons.cycleCriteria() : say(strings.chooseFirst)),
  all_equal: () => ranking.rankAllEqual(),
  diff: panes.toggleDiff,
  raw: () => current && panes.toggleRaw(),
  linked: panes.toggleLinked,
  prompt: togglePrompt,
  thread: () => current && current.messages.length > 1 && toggleThread(),
  pane_before: () => panes.movePane(-mirrored),
  pane_after: () => panes.movePane(mirrored),
  scroll_up: () => panes.scrollPane({ lines: -1 }),
  scroll_down: () => panes.scrollPane({ lines: 1 }),
  page_up: () => panes.scrollPane({ pages: -1 }),
  page_down: () => panes.scrollPane({ pages: 1 }),
  guidelines: () => !$('[data-open="guidelines"]').hidden && toggleDialog("guidelines"),
  help: () => toggleDialog("help"),
  pause: () => toggleDialog("pause"),
};
actions.ranking_criteria = actions.criteria;

/** Enter confirms; on a button of the scale that is not chosen yet it chooses. */
function confirmOrChoose(event) {
  const focused = event.target.closest("#scale [data-action]")?.dataset.action;
  if (focused && focused !== chosen?.action) choose(scale.choiceOf(focused), event.timeStamp);
  else confirm(event.timeStamp);
}

function judgeBothBad(event) {
  if (!ranking.isRanking()) return void choose(scale.choiceOf("both_bad"), event.timeStamp);
  if (!config.asks.bothBad || !isOpenToChoice()) return;
  chosen = { verdict: "both_bad" };
  if (reasons.asksAnything()) reasons.openReasons(chosen);
  else confirm();
}

const WITHOUT_PAIR = new Set(["guidelines", "help", "pause", "undo", "confirm"]);
const bindings = () => config.keys[ranking.isRanking() && current ? "ranking" : "pair"];

/** An open dialog has the keys for itself, but for the one that closes it. */
function dialogKey(key) {
  const dialog = $("dialog[open]");
  if (!dialog) return !current && !WITHOUT_PAIR.has(bindings()[key]) ? "stop" : false;
  if (bindings()[key] !== dialog.id) return "stop";
  dialog.close();
  return true;
}

listen({
  bindings,
  actions,
  layers: [dialogKey, rows.rowKey, reasons.criteriaKey, (key) => Boolean(current) && ranking.rankingKey(key)],
});
scale.onChoice(choose);
ranking.onRanking(rank);
$("#skip-row").addEventListener("click", (event) => {
  const button = event.target.closest("[data-skip]");
  if (button) skip(button.dataset.skip);
});
for (const button of $$("[data-confirm]")) button.addEventListener("click", () => confirm());
$("#rationale").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229 || event.repeat) return;
  event.preventDefault();
  confirm(event.timeStamp);
});
for (const area of $$(".label-editor textarea")) {
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) confirm(event.timeStamp);
  });
}
$("#all-bad")?.addEventListener("click", judgeBothBad);
$("#edit").addEventListener("click", () => reasons.editBest(chosen));
$("#feedback-next").addEventListener("click", goOn);
$("#practice-end").addEventListener("click", start);
$("#undo").addEventListener("click", undo);
$("#retry").addEventListener("click", () => { showState("loading"); queue.sync(); });
for (const button of $$("[data-open]")) button.addEventListener("click", () => toggleDialog(button.dataset.open));
for (const button of $$("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
for (const dialog of $$("dialog")) dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
addEventListener("focus", () => { if (!$("#note").hidden) queue.sync(); }); // back from logging in elsewhere

queue.sync();
