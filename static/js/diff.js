// Where two texts differ, word by word. Pure functions on strings, and their marks on text nodes: nothing is ever written
// into the page, so a hostile text stays the text it is.
//
// Myers, "An O(ND) difference algorithm and its variations" (1986), greedy form, with a bound on its work: two long texts
// that have little in common are compared line by line instead, which is linear.

const MAX_EDITS = 1_200; // memory and time grow with its square
const MAX_STEPS = 4_000_000;
const NOISE = 1; // so few equal words between two changes are no islands: they would make the marks flicker

/** Words, with the blanks and signs between them left out: [{text, start, end}, …]. */
export function words(text) {
  return [...text.matchAll(/[\p{L}\p{N}\p{M}_]+|[^\s\p{L}\p{N}\p{M}_]/gu)].map((found) => ({
    text: found[0],
    start: found.index,
    end: found.index + found[0].length,
  }));
}

/**
 * What differs between two strings: {left, right, isCoarse}, where left and right are lists of [start, end) offsets into
 * the strings, ascending and apart, and isCoarse says that whole lines were compared. Equal texts give empty lists.
 */
export function differences(left, right) {
  const [ours, theirs] = [words(left), words(right)];
  const kept = matches(ours.map((word) => word.text), theirs.map((word) => word.text));
  if (!kept) return { left: lonelyLines(left, right), right: lonelyLines(right, left), isCoarse: true };
  const common = withoutNoise(kept, ours.length, theirs.length);
  const without = (list, side) => spans(list, new Set(common.map((pair) => pair[side])));
  return { left: without(ours, 0), right: without(theirs, 1), isCoarse: false };
}

/** Index pairs [i, j] of a longest common subsequence of two lists, or null when finding it would take too long. */
export function matches(ours, theirs) {
  let start = 0;
  while (start < ours.length && start < theirs.length && ours[start] === theirs[start]) start++;
  let end = 0;
  while (end < Math.min(ours.length, theirs.length) - start && ours.at(-1 - end) === theirs.at(-1 - end)) end++;
  const middle = myers(ours.slice(start, ours.length - end), theirs.slice(start, theirs.length - end));
  if (!middle) return null;
  const head = Array.from({ length: start }, (_, i) => [i, i]);
  const tail = Array.from({ length: end }, (_, i) => [ours.length - end + i, theirs.length - end + i]);
  return [...head, ...middle.map(([i, j]) => [i + start, j + start]), ...tail];
}

function myers(ours, theirs) {
  const [n, m] = [ours.length, theirs.length];
  const most = Math.min(n + m, MAX_EDITS);
  const furthest = new Int32Array(2 * most + 3); // by diagonal k = x - y, at k + most + 1
  const trace = [];
  let steps = 0;
  for (let d = 0; d <= most; d++) {
    trace.push(furthest.slice(most + 1 - d - 1, most + 1 + d + 2)); // as it was before this round: k from -d-1 to d+1
    for (let k = -d; k <= d; k += 2) {
      const at = k + most + 1;
      let x = k === -d || (k !== d && furthest[at - 1] < furthest[at + 1]) ? furthest[at + 1] : furthest[at - 1] + 1;
      while (x < n && x - k < m && ours[x] === theirs[x - k]) { x++; steps++; }
      furthest[at] = x;
      if (k === n - m && x >= n) return backtrack(trace, n, m);
    }
    steps += d;
    if (steps > MAX_STEPS) return null;
  }
  return null;
}

function backtrack(trace, n, m) {
  const pairs = [];
  let [x, y] = [n, m];
  for (let d = trace.length - 1; d >= 0 && (x > 0 || y > 0); d--) {
    const [k, before] = [x - y, (diagonal) => trace[d][diagonal + d + 1]];
    const previous = k === -d || (k !== d && before(k - 1) < before(k + 1)) ? k + 1 : k - 1;
    const fromX = d === 0 ? 0 : before(previous);
    const fromY = d === 0 ? 0 : fromX - previous;
    while (x > fromX && y > fromY) pairs.push([--x, --y]);
    [x, y] = [fromX, fromY];
  }
  return pairs.reverse();
}

/** Leaves out runs of matches so short that marking around them would hide what changed. Ends of the texts count. */
function withoutNoise(pairs, n, m) {
  const runs = [];
  for (const [i, j] of pairs) {
    const last = runs.at(-1)?.at(-1);
    if (last && last[0] === i - 1 && last[1] === j - 1) runs.at(-1).push([i, j]);
    else runs.push([[i, j]]);
  }
  const isAtEdge = (run) => (run[0][0] === 0 && run[0][1] === 0) || (run.at(-1)[0] === n - 1 && run.at(-1)[1] === m - 1);
  return runs.filter((run) => run.length > NOISE || isAtEdge(run)).flat();
}

/** Offsets of the words that are not in `common`, neighbours joined over what stands between them. */
function spans(list, common) {
  const found = [];
  let isOpen = false;
  for (const [index, { start, end }] of list.entries()) {
    if (common.has(index)) isOpen = false;
    else if (isOpen) found.at(-1)[1] = end;
    else isOpen = Boolean(found.push([start, end]));
  }
  return found;
}

/** Offsets of the lines that the other text does not have. */
function lonelyLines(text, other) {
  const known = new Set(other.split("\n").map((line) => line.trim()));
  const found = [];
  let start = 0;
  for (const line of text.split("\n")) {
    if (line.trim() && !known.has(line.trim())) found.push([start, start + line.length]);
    start += line.length + 1;
  }
  return found;
}

// --- marks -----------------------------------------------------------------------------------------------------------

const NAME = "difference"; // ::highlight(difference) in label.css

export const canMark = () => Boolean(globalThis.CSS?.highlights);
export const unmark = () => CSS.highlights?.delete(NAME);

/** Marks where the texts of two elements differ. Returns {left, right, isCoarse}: how many places in each. */
export function mark(left, right) {
  const [ours, theirs] = [textOf(left), textOf(right)];
  const found = differences(ours.text, theirs.text);
  const ranges = [...rangesOf(ours, found.left), ...rangesOf(theirs, found.right)];
  CSS.highlights.set(NAME, new Highlight(...ranges));
  const count = (text, list) => list.reduce((n, [start, end]) => n + words(text.slice(start, end)).length, 0);
  return { left: count(ours.text, found.left), right: count(theirs.text, found.right), isCoarse: found.isCoarse };
}

const BLOCK = "p, li, tr, pre, h1, h2, h3, h4, h5, h6, blockquote, div";

/** The text of an element with the nodes that it comes from; blocks end lines, as they do on the screen. */
function textOf(root) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const nodes = [];
  let text = "";
  let block = null;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const around = node.parentElement.closest(BLOCK);
    if (block && around !== block && !text.endsWith("\n")) text += "\n";
    block = around;
    nodes.push({ node, start: text.length });
    text += node.data;
  }
  return { nodes, text };
}

function* rangesOf({ nodes }, spansOf) {
  let first = 0;
  for (const [start, end] of spansOf) {
    while (nodes[first].start + nodes[first].node.data.length <= start) first++;
    for (let at = first; at < nodes.length && nodes[at].start < end; at++) {
      const { node, start: offset } = nodes[at];
      const [from, to] = [Math.max(0, start - offset), Math.min(node.data.length, end - offset)];
      if (from < to) yield new StaticRange({ startContainer: node, startOffset: from, endContainer: node, endOffset: to });
    }
  }
}
