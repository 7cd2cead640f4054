// What every part of the comparison screen shares: the page's configuration, its sentences, and the live region.
export const $ = (selector, root = document) => root.querySelector(selector);
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

export const config = JSON.parse($("#label-config").textContent);
export const { strings, urls, asks } = config;

/** A sentence with its %(name)s filled in. */
export const fill = (sentence, values = {}) => sentence.replace(/%\((\w+)\)s/g, (all, name) => values[name] ?? all);

/** A word in the bar, also for screen readers; it fades by itself. */
export function say(sentence, values) {
  const word = document.createElement("span");
  word.textContent = fill(sentence, values);
  $("#status").replaceChildren(word);
}

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** A switch that this browser remembers, for how somebody likes to read. */
export class Remembered {
  #name;
  value;

  constructor(name) {
    this.#name = `label:${config.person}:${name}`;
    try {
      this.value = localStorage.getItem(this.#name) === "on";
    } catch {
      this.value = false; // storage is switched off
    }
  }

  toggle() {
    this.value = !this.value;
    try {
      localStorage.setItem(this.#name, this.value ? "on" : "off");
    } catch {
      // it lasts as long as the page
    }
    return this.value;
  }
}
