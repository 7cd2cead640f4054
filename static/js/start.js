// The form that starts a run: parameters of the chosen method without leaving the page, presets, and an estimate.

const form = document.querySelector("[data-start]");
const QUIET_MS = 250; // after the last change, until the estimate is asked for
const COUNTING_MS = 1000; // until it is asked for again, while the judgments are being counted

form.addEventListener("change", (event) => {
  if (event.target.name === "method") loadParameters();
  else estimateSoon();
});
form.addEventListener("input", (event) => {
  if (event.target.closest("[data-parameters]")) markPreset();
  estimateSoon();
});
form.addEventListener("click", (event) => {
  const preset = event.target.closest("[data-preset]");
  if (preset) apply(preset);
});

// --- the parameters of another method --------------------------------------------------------------------------------

/** Asks for the form of the chosen method; what was changed by hand stays where that method has it as well. */
async function loadParameters() {
  const old = form.querySelector("[data-parameters]");
  const typed = [...old.querySelectorAll("[name]")].filter(isChanged).map((field) => [field.name, valueOf(field)]);
  const data = new FormData(form);
  const query = new URLSearchParams({ campaign: data.get("campaign"), method: data.get("method") });
  old.setAttribute("aria-busy", "true");
  const response = await fetch(`${form.action}?${query}`);
  if (!response.ok) return location.assign(`${form.action}?${query}`); // the browser says what is wrong
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  if (new FormData(form).get("method") !== data.get("method")) return undefined; // another one was chosen meanwhile
  old.replaceWith(page.querySelector("[data-parameters]"));
  for (const [name, value] of typed) set(name, value);
  markPreset();
  return estimateSoon();
}

function isChanged(field) {
  if (field.type === "checkbox") return field.checked !== field.defaultChecked;
  if (field.options) return [...field.options].some((option) => option.selected !== option.defaultSelected);
  return field.value !== field.defaultValue;
}

function valueOf(field) {
  return field.type === "checkbox" ? field.checked : field.value;
}

function set(name, value) {
  const field = form.querySelector(`[data-parameters] [name="${name}"]`);
  if (!field) return;
  if (field.type === "checkbox") field.checked = value === true;
  else field.value = String(value);
}

// --- presets ---------------------------------------------------------------------------------------------------------

function apply(preset) {
  for (const [name, value] of Object.entries(JSON.parse(preset.dataset.preset))) set(name, value);
  markPreset();
  estimateSoon();
}

/** The preset whose values all stand in the form is the one that is pressed; there may be none. */
function markPreset() {
  let help = "";
  for (const preset of form.querySelectorAll("[data-preset]")) {
    const isOn = Object.entries(JSON.parse(preset.dataset.preset)).every(([name, value]) => {
      const field = form.querySelector(`[data-parameters] [name="${name}"]`);
      return !field || (typeof value === "number" ? Number(field.value) === value : String(valueOf(field)) === String(value));
    });
    preset.setAttribute("aria-pressed", isOn);
    if (isOn) help = preset.title;
  }
  form.querySelector("[data-show=preset]").textContent = help;
}

// --- the estimate ----------------------------------------------------------------------------------------------------

let timer;
let asking = new AbortController(); // of the question that is under way

function estimateSoon(ms = QUIET_MS) {
  clearTimeout(timer);
  timer = setTimeout(estimate, ms);
}

async function estimate() {
  const data = new FormData(form);
  data.delete("csrfmiddlewaretoken");
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  try {
    const response = await fetch(`${form.dataset.estimate}?${new URLSearchParams(data)}`, { signal });
    if (!response.ok) return;
    const text = await response.text();
    if (response.status === 202) estimateSoon(COUNTING_MS);
    const shown = form.querySelector("[data-show=estimate]");
    shown.innerHTML = text; // our own template, escaped there
    form.querySelector("[data-show=summary]").textContent = shown.querySelector("[data-summary]")?.textContent ?? "";
  } catch (error) {
    if (!signal.aborted) console.warn("estimate:", error); // the form works without
  }
}

markPreset();
estimate();
