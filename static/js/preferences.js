// Going to a field of the keys and pressing a key enters its name. Tab goes on, Escape leaves the field as it was.
import { keyName } from "./keynames.js";

for (const field of document.querySelectorAll(".key-field")) {
  field.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (["Tab", "Escape", "Shift"].includes(event.key)) return;
    event.preventDefault();
    field.value = keyName(event);
  });
  field.addEventListener("focus", () => field.select());
}

const defaults = document.getElementById("defaults");
defaults.hidden = false;
defaults.addEventListener("click", () => {
  for (const field of document.querySelectorAll(".key-field")) field.value = field.dataset.default;
});
