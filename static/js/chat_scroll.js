// The page stays at its end while it grows, as long as the reader is there. Scrolling up, however little, lets go of it.
import { $ } from "./chat_page.js";

const page = document.scrollingElement;
const NEAR = 24; // pixels from the end that count as being there
const FAR = 240; // from here on a button leads back
let isFollowing = true;
let last = { top: 0, height: 0 };

const toGo = () => page.scrollHeight - page.scrollTop - page.clientHeight;

addEventListener("scroll", () => {
  const hasShrunk = page.scrollHeight < last.height; // the browser scrolled, not the reader
  if (toGo() <= NEAR) isFollowing = true;
  else if (page.scrollTop < last.top && !hasShrunk) isFollowing = false;
  last = { top: page.scrollTop, height: page.scrollHeight };
  showButton();
}, { passive: true });
addEventListener("resize", showButton, { passive: true });

/** Makes a change that may let the page grow. */
export function keepingPlace(change) {
  change();
  if (isFollowing) toEnd();
  else showButton();
}

export function toEnd() {
  isFollowing = true;
  page.scrollTop = page.scrollHeight;
  last = { top: page.scrollTop, height: page.scrollHeight };
  showButton();
}

/** Makes a change around `turn()` while what the reader looks at stays where it is on the screen. */
export function holding(turn, change) {
  const before = turn()?.getBoundingClientRect().top;
  change();
  const after = turn()?.getBoundingClientRect().top;
  if (before !== undefined && after !== undefined) page.scrollTop += after - before;
  showButton();
}

export function showButton() {
  $("to-newest").hidden = toGo() < FAR;
}

$("to-newest").addEventListener("click", () => {
  toEnd();
  $("content").focus({ preventScroll: true });
});
