// Pages of managers and reviewers: asks before what ends something, adds rows to forms, decides by keys, and keeps htmx from
// replacing what somebody is at.

const TYPING = "input, textarea, select, [contenteditable]";

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});

// --- rows of a formset -----------------------------------------------------------------------------------------------

for (const button of document.querySelectorAll("[data-add-row]")) {
  const fieldset = button.closest("fieldset");
  const total = fieldset.querySelector("[name$=-TOTAL_FORMS]");
  const most = Number(fieldset.querySelector("[name$=-MAX_NUM_FORMS]").value);
  const update = () => (button.hidden = Number(total.value) >= most);
  button.addEventListener("click", () => {
    const holder = document.createElement("div");
    holder.innerHTML = fieldset.querySelector("template[data-row]").innerHTML.replaceAll("__prefix__", total.value);
    const row = holder.firstElementChild;
    fieldset.querySelector("[data-rows]").append(row);
    total.value = Number(total.value) + 1;
    row.querySelector("input:not([type=hidden])").focus();
    update();
  });
  update();
}

// --- deciding by keys ------------------------------------------------------------------------------------------------

const form = document.querySelector("#decide");
document.addEventListener("keydown", (event) => {
  if (!form || event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  if (event.target.closest(TYPING)) return;
  const button = [...form.querySelectorAll("[data-keys]")].find((one) => one.dataset.keys.split(" ").includes(name(event)));
  if (!button || form.dataset.sent) return;
  event.preventDefault();
  form.requestSubmit(button);
});
form?.addEventListener("submit", () => (form.dataset.sent = "yes")); // once; the server takes a second one for the same

/** A key as labeling.shortcuts calls it. */
function name(event) {
  return event.key === " " ? "space" : event.key.toLowerCase();
}

// --- figures that refresh themselves ---------------------------------------------------------------------------------

document.addEventListener("htmx:beforeRequest", (event) => {
  const part = event.target;
  const isInUse = part.contains(document.activeElement) || part.querySelector("details[open]") || document.hidden;
  if (isInUse) event.preventDefault();
});
