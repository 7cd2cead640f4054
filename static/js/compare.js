// Runs beside each other: their curves over each other, one colour a run, each of which can be hidden.

import { Board } from "./plots.js";

const root = document.querySelector("[data-compare]");
const board = new Board(root.querySelector("[data-board]"));
const loaded = [];
const runs = [...root.querySelectorAll("[data-run]")];

for (const entry of runs) {
  const run = { key: entry.dataset.run, name: entry.dataset.name, label: entry.dataset.run, colour: entry.dataset.colour };
  const curves = fetch(entry.dataset.curves, { headers: { Accept: "application/json" } })
    .then((response) => (response.ok ? response.json() : Promise.reject(new Error(`HTTP ${response.status}`))))
    .then(({ charts }) => () => board.show(charts, run));
  loaded.push(curves);
  entry.querySelector("[data-toggle]").addEventListener("click", (event) => {
    const isShown = event.currentTarget.getAttribute("aria-pressed") !== "true";
    event.currentTarget.setAttribute("aria-pressed", isShown);
    board.toggle(run.key, isShown);
  });
}

for (const heading of root.querySelectorAll("[data-run-name]")) {
  heading.textContent = runs[Number(heading.dataset.runName)].dataset.name;
}

// In the order of the runs, whichever answer comes first.
for (const { value, reason } of await Promise.allSettled(loaded)) {
  if (value) value();
  else console.warn("curves.json:", reason);
}
