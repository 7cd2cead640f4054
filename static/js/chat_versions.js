// Who answers: whatever is current, a version by name, or two that are compared.
import { ApiError, getJSON } from "./api.js";
import { $, chat, content, kept, words } from "./chat_page.js";

const CURRENT_MS = 10_000;
const badge = $("current");
const [one, two] = [$("version-one"), $("version-two")];
let wasCompared = false; // the pair has been looked at: it stays

const options = () => [...document.querySelectorAll('#picker input[name="version"]')];
const picked = () => options().find((option) => option.checked);

/** The name to ask for: of a version, or the alias. */
export const pickedVersion = () => picked()?.value || "current";

/** What a question is to be answered by: one name, or two. */
export function versions() {
  return $("compare").hidden ? [pickedVersion()] : [one.value, two.value];
}

/** A choice made for the page of a new conversation goes with it to its address. */
export function keepPicked() {
  kept.set("version", picked()?.value);
}

function showPicked() {
  badge.textContent = picked()?.dataset.label || badge.dataset.label;
}

function pick(value) {
  const wanted = options().find((option) => option.value === value);
  if (wanted) wanted.checked = true;
  showPicked();
}

$("picker").addEventListener("change", () => {
  keepPicked();
  showPicked();
});

function toggle(panel, isShown) {
  $(panel).hidden = !isShown;
  const name = panel === "picker" ? "aria-expanded" : "aria-pressed";
  $(`toggle-${panel}`).setAttribute(name, String(isShown));
}

$("toggle-picker").addEventListener("click", () => {
  const isShown = $("picker").hidden;
  toggle("compare", false);
  toggle("picker", isShown);
  if (isShown) picked().focus();
});

$("toggle-compare").addEventListener("click", () => {
  const isShown = $("compare").hidden;
  toggle("picker", false);
  toggle("compare", isShown);
  if (isShown) differ();
  wasCompared = true;
  content.focus();
});

/** Nothing is compared with itself. */
function differ() {
  if (one.value !== two.value) return;
  const other = [...two.options].find((option) => option.value !== one.value);
  if (other) two.value = other.value;
}

$("picker").addEventListener("keydown", (event) => {
  if (event.key !== "Escape" && event.key !== "Enter") return;
  event.preventDefault();
  event.stopPropagation();
  closePicker();
  content.focus();
});

export const closePicker = () => toggle("picker", false);

// --- versions are published while the page is open --------------------------------------------------------------------

async function lookAtCurrent() {
  if (document.hidden) return;
  try {
    const { name, label, is_base: isBase } = await getJSON(`${chat.dataset.currentUrl}?in=${chat.dataset.conversation ?? ""}`);
    if (name === badge.dataset.name) return;
    renew((await getJSON(chat.dataset.versionsUrl)).html);
    Object.assign(badge.dataset, { name, label });
    badge.classList.toggle("badge-accent", !isBase);
    showPicked();
    if (picked()?.value) return; // somebody else answers here
    $("moved").textContent = words.nowAnswering.replace("%s", label);
    $("moved").hidden = false;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error; // it is asked again soon
  }
}

/** The panels stay, and the selects: only what they offer changes, also below somebody who is choosing. */
function renew(html) {
  const template = document.createElement("template");
  template.innerHTML = html; // our server's
  renewPicker(template.content.querySelector(".picker-options"));
  for (const select of [one, two]) renewSelect(select, template.content.getElementById(select.id));
  differ();
  const isAlone = one.options.length < 2;
  $("toggle-compare").disabled = isAlone;
  $("toggle-compare").title = isAlone ? words.onlyVersion : $("toggle-compare").ariaLabel;
  if (isAlone) toggle("compare", false);
}

function renewPicker(fresh) {
  const shown = $("picker").querySelector(".picker-options");
  const isHeld = shown.contains(document.activeElement);
  const [value, place, own] = [picked().value, shown.scrollTop, picked().closest("label")];
  shown.innerHTML = fresh.innerHTML;
  if (!options().some((option) => option.value === value)) shown.append(own); // nobody is moved to another version unasked
  shown.scrollTop = place;
  pick(value);
  if (isHeld) picked().focus({ preventScroll: true });
}

function renewSelect(select, fresh) {
  const { value } = select;
  select.innerHTML = fresh.innerHTML;
  if (wasCompared && [...select.options].some((option) => option.value === value)) select.value = value;
}

setInterval(lookAtCurrent, CURRENT_MS);
addEventListener("visibilitychange", lookAtCurrent);

pick(kept.get("version"));
