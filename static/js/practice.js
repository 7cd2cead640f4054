// The practice round: pairs whose answer is known. It says so, says after each what was right, and sums up at its end.
import { $, config, fill, strings } from "./page.js";
import { inOrder } from "./ranking.js";

const NAME = `label:${config.person}:${config.campaign}:practice`;
let score = stored();

function stored() {
  try {
    const { right, n } = JSON.parse(sessionStorage.getItem(NAME)) ?? {};
    return { right: Number(right) || 0, n: Number(n) || 0 };
  } catch {
    return { right: 0, n: 0 };
  }
}

export function showPracticeNote(isPractice) {
  $("#practice").hidden = !isPractice;
  $("#practice").textContent = strings.practice;
}

/** What the server said of a judgment, in a row above the scale. `order` are the response ids as shown. */
export function showFeedback({ right, answer }, verdict, order) {
  if (verdict !== "skip") score = { right: score.right + Number(right), n: score.n + 1 };
  try {
    sessionStorage.setItem(NAME, JSON.stringify(score));
  } catch {
    // storage is switched off: summed up without what was before a reload
  }
  $("#feedback-verdict").textContent = verdict === "skip" ? "" : right ? strings.practiceRight : strings.practiceWrong;
  $("#feedback-answer").textContent = fill(strings.practiceAnswer, { answer: inOrder(order.map((id) => answer[id])) });
  $("#feedback").classList.toggle("is-right", right);
  $("#feedback").hidden = false;
}

export const hideFeedback = () => { $("#feedback").hidden = true; };
export const isFeedbackShown = () => !$("#feedback").hidden;
export const showSummary = () => { $("#practice-summary").textContent = fill(strings.practiceSummary, score); };
