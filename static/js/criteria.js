// The campaign's criteria, each on its own scale, by buttons or by key: one key goes from criterion to criterion, digits
// answer the one that is marked.
import { $, asks, config, element, fill, strings } from "./page.js";
import { nameOf } from "./panes.js";

const box = $("#criteria");
let slots = []; // {criterion, place: of a rating's response or null, control, options}
let active = -1;

/** The answers that a scale offers, in the order of their digits: {value, name}. Positive: the first response is better. */
function optionsOf({ scale }) {
  const grade = (value) => ({ value, name: config.grades[3 - value] });
  if (scale === "rating") return [1, 2, 3, 4, 5].map((value) => ({ value, name: String(value) }));
  if (scale === "seven") return [3, 2, 1, 0, -1, -2, -3].map(grade);
  const sides = scale === "three" ? [1, 0, -1] : [1, -1];
  return sides.map((value) => ({ value, name: config.grades[3 - 2 * value] }));
}

/** Builds them for a comparison of `n` responses; `given` are answers from before. Of three and more, only ratings. */
export function showCriteria(n, order, given) {
  active = -1;
  const asked = asks.criteria.filter((criterion) => n === 2 || criterion.scale === "rating");
  slots = asked.flatMap((criterion) => {
    const places = criterion.scale === "rating" ? [...Array(n).keys()] : [null];
    return places.map((place) => ({ criterion, place, options: optionsOf(criterion) }));
  });
  slots.forEach(build);
  for (const slot of slots) {
    const said = given[slot.criterion.key];
    set(slot, slot.place === null ? said : said?.[order[slot.place]]);
  }
  box.replaceChildren(...slots.map((slot) => slot.control));
}

function build(slot, number) {
  const { criterion, place, options } = slot;
  const name = place === null ? criterion.label : `${criterion.label} · ${fill(strings.response, { name: nameOf(place) })}`;
  const visible = place === null ? criterion.label : `${criterion.label} · ${nameOf(place)}`;
  const radios = options.map((option, index) => {
    const radio = element("input", { type: "radio", name: `criterion-${number}`, value: String(option.value) });
    radio.setAttribute("aria-label", option.name);
    return element("label", { title: option.name }, radio, String(index + 1));
  });
  const legend = element("legend", {}, element("span", { className: "visually-hidden", textContent: name }));
  const shown = element("span", { className: "label-criterion-name", textContent: visible, title: criterion.help ?? "" });
  shown.setAttribute("aria-hidden", "true");
  const scale = element("div", { className: "segmented" }, ...radios);
  slot.control = element("fieldset", { className: "label-criterion" }, legend, shown, ...(place === null ? [end("1"), scale, end("2")] : [scale]));
}

/** At either end of a scale stands the response that is better there. */
function end(text) {
  const sign = element("span", { className: "label-number", textContent: text });
  sign.setAttribute("aria-hidden", "true");
  return sign;
}

function set(slot, value) {
  for (const radio of slot.control.querySelectorAll("input")) radio.checked = radio.value === String(value);
}

const valueOf = (slot) => {
  const radio = slot.control.querySelector("input:checked");
  return radio ? Number(radio.value) : null;
};

/** Marks the next criterion; after the last one none. Returns whether one is marked. */
export function nextCriterion() {
  slots[active]?.control.classList.remove("is-active");
  active = active + 1 < slots.length ? active + 1 : -1;
  slots[active]?.control.classList.add("is-active");
  slots[active]?.control.scrollIntoView({ block: "nearest" });
  return active >= 0;
}

/** Answers the marked criterion by a digit; Escape leaves it. */
export function criteriaKey(key) {
  if (active < 0 || $("#reasons").hidden) return false;
  const slot = slots[active];
  if (key === "escape") {
    active = slots.length - 1;
    slot.control.classList.remove("is-active");
    nextCriterion();
    return true;
  }
  if (!/^\d$/.test(key)) return false;
  const option = slot.options[Number(key) - 1];
  if (option) {
    set(slot, option.value);
    nextCriterion();
  }
  return true; // also a digit beyond the scale: it must not change the choice
}

/** What is posted: a criterion's key → value or, of ratings, response id → rating. */
export function criteriaValues(order) {
  const values = {};
  for (const slot of slots) {
    const value = valueOf(slot);
    if (value === null) continue;
    if (slot.place === null) values[slot.criterion.key] = value;
    else (values[slot.criterion.key] ??= {})[order[slot.place]] = value;
  }
  return values;
}
