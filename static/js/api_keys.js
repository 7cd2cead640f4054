// The page of API keys: copying the new one.
import { toast } from "./api.js";

const button = document.querySelector("[data-copy]");
const field = button && document.getElementById(button.dataset.copy);

field?.addEventListener("focus", () => field.select());

button?.addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(field.value);
    toast(button.dataset.copied, { kind: "ok", seconds: 2 });
  } catch {
    field.focus();
    toast(button.dataset.notCopied, { kind: "error" });
  }
});
