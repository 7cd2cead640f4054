// The rows that open above the scale: why to skip, and what is wrong. One at a time; digits press their buttons.
import { $, $$, fill, strings } from "./page.js";

const rows = { skip: $("#skip-row"), flag: $("#flag-row") };
let flags = new Set();

export const openRow = () => Object.keys(rows).find((name) => !rows[name].hidden) ?? null;
export const flagged = () => [...flags];

export function closeRows() {
  const hadFocus = Object.values(rows).some((row) => row.contains(document.activeElement));
  for (const [name, row] of Object.entries(rows)) {
    row.hidden = true;
    $(`#${name}`).setAttribute("aria-expanded", "false");
  }
  if (hadFocus) $("#pair").focus({ preventScroll: true });
}

export function toggleRow(name) {
  const isOpen = openRow() === name;
  closeRows();
  if (isOpen) return;
  rows[name].hidden = false;
  $(`#${name}`).setAttribute("aria-expanded", "true");
  rows[name].querySelector("button").focus({ focusVisible: true });
}

/** While a row is open, digits press its buttons and Escape closes it; nothing else is judged meanwhile. */
export function rowKey(key) {
  const row = rows[openRow()];
  if (!row) return false;
  if (key === "escape") {
    closeRows();
    return true;
  }
  const button = row.querySelector(`[data-digit="${CSS.escape(key)}"]`);
  button?.click();
  return Boolean(button) || /^\d$/.test(key);
}

export function setFlags(given) {
  flags = new Set(given);
  for (const button of $$("[data-flag]")) button.setAttribute("aria-pressed", String(flags.has(button.dataset.flag)));
  $("#flag-label").textContent = flags.size ? fill(strings.flagged, { n: flags.size }) : strings.flag;
  $("#flag").classList.toggle("is-flagged", flags.size > 0);
}

rows.flag.addEventListener("click", (event) => {
  const code = event.target.closest("[data-flag]")?.dataset.flag;
  if (!code) return;
  if (!flags.delete(code)) flags.add(code);
  setFlags(flags);
});
for (const button of $$("[data-close-row]")) button.addEventListener("click", closeRows);
for (const name of Object.keys(rows)) $(`#${name}`).addEventListener("click", () => toggleRow(name));
