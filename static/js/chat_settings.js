// System prompt and sampling of the conversation. Before the first question they wait here and go along with it.
import { ApiError, postJSON, showError, toast } from "./api.js";
import { $, words } from "./chat_page.js";

const dialog = $("settings-dialog");
const form = $("settings-form");
let waiting = {}; // of a conversation that does not exist yet

export const settingsToStart = () => waiting;

const fields = () => [...form.elements].filter((field) => field.name);

$("show-settings").addEventListener("click", () => {
  showProblems({});
  dialog.showModal();
});

$("reset-settings").addEventListener("click", () => {
  for (const field of fields()) field.value = "";
  showProblems({});
});

// To what was saved last. Escape and a click outside keep what is written: a long text is easily lost by them.
form.querySelector("[data-close]").addEventListener("click", () => form.reset());

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = Object.fromEntries(fields().map((field) => [field.name, field.value === "" ? null : field.value]));
  try {
    const { settings, is_default: isDefault } = await postJSON(form.dataset.url, body);
    waiting = settings;
    keep(settings);
    $("settings-changed").hidden = isDefault;
    dialog.close();
    toast(words.settingsSaved, { kind: "ok", seconds: 3 });
  } catch (error) {
    const problems = error instanceof ApiError && error.body?.error?.fields;
    if (problems) showProblems(problems);
    else showError(error);
  }
});

/** What was saved is what the form falls back to. */
function keep(settings) {
  for (const field of fields()) {
    field.defaultValue = settings[field.name] ?? "";
    field.value = field.defaultValue;
  }
}

function showProblems(problems) {
  for (const field of fields()) {
    const box = field.closest(".field");
    box.querySelector(".error")?.remove();
    field.removeAttribute("aria-invalid");
    if (!problems[field.name]) continue;
    const problem = Object.assign(document.createElement("p"), { className: "error", id: `${field.id}_error`, textContent: problems[field.name] });
    problem.setAttribute("role", "alert");
    field.setAttribute("aria-invalid", "true");
    box.append(problem);
  }
  form.querySelector('[aria-invalid="true"]')?.focus();
}
