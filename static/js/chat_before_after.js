// Before and after: the same question to base, previous and current, each in a column that grows.
import { getJSON, showError } from "./api.js";
import { events } from "./chat_events.js";
import { $, thread } from "./chat_page.js";
import { show } from "./chat_prose.js";

const dialog = $("versions-dialog");
let controller = null;

async function open(url) {
  const { html } = await getJSON(url);
  $("versions").innerHTML = html; // our server's
  controller = new AbortController();
  dialog.showModal();
  await Promise.all([...dialog.querySelectorAll("[data-column]")].map((column) => fill(column, controller.signal)));
}

async function fill(column, signal) {
  let end = null;
  try {
    for await (const { kind, data } of events(column.dataset.column, { signal, method: "POST" })) {
      if (kind === "end") end = data;
      show(column.querySelector("[data-text]"), data.html);
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof TypeError)) showError(error);
  }
  column.setAttribute("aria-busy", "false");
  const problem = end ? end.error : $("toasts").dataset.offline;
  if (!problem) return;
  column.querySelector(".waiting")?.remove();
  column.querySelector(".notice").textContent = problem;
  column.querySelector(".notice").hidden = false;
}

thread.addEventListener("click", (event) => {
  const button = event.target.closest("[data-versions]");
  if (button) open(button.dataset.versions).catch(showError);
});

dialog.addEventListener("close", () => controller?.abort());
