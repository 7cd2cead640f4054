// Runs blocking in <head>, before anything is painted: the chosen theme never flashes.
const THEMES = ["light", "dark"];

function storedTheme() {
  try {
    return localStorage.getItem("theme");
  } catch {
    return null; // storage is switched off: follow the system
  }
}

function applyTheme(theme) {
  if (THEMES.includes(theme)) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

function chooseTheme(theme) {
  applyTheme(theme);
  try {
    if (theme) localStorage.setItem("theme", theme);
    else localStorage.removeItem("theme");
  } catch {
    // storage is switched off: the choice lasts as long as the page
  }
}

applyTheme(storedTheme());

addEventListener("storage", (event) => {
  if (event.key === "theme") applyTheme(event.newValue); // another tab changed it
});

addEventListener("DOMContentLoaded", () => {
  for (const choices of document.querySelectorAll(".theme-switch")) {
    const current = document.documentElement.dataset.theme ?? "";
    for (const input of choices.querySelectorAll("input")) input.checked = input.value === current;
    choices.addEventListener("change", (event) => chooseTheme(event.target.value));
    choices.hidden = false; // without a script there is nothing to switch
  }
});

document.addEventListener("htmx:configRequest", (event) => {
  event.detail.headers["X-CSRFToken"] = document.querySelector('meta[name="csrf-token"]')?.content ?? "";
});
