// How a key is called, here and in labeling/shortcuts.py.

/** The digit, whatever the layout puts on that row; the letter, whatever the script; else the browser's name. */
export function keyName(event) {
  const digit = /^Digit(\d)$/.exec(event.code);
  if (digit && !event.shiftKey) return digit[1];
  if (event.key === " ") return "space";
  const key = event.key.toLowerCase();
  const letter = /^Key([A-Z])$/.exec(event.code);
  return letter && key.length === 1 && key > "\u007f" ? letter[1].toLowerCase() : key;
}
