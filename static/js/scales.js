// Numbers of plots: smoothing, round ticks, words for values; and elements made in one line.

/** Exponential mean with bias correction (as in Adam); the past fades with the steps between, not with the points. */
export function smoothed(steps, values, past) {
  let [mean, weight] = [0, 0];
  return values.map((value, i) => {
    const kept = past ** (i ? steps[i] - steps[i - 1] : 1);
    mean = kept * mean + (1 - kept) * value;
    weight = kept * weight + (1 - kept);
    return weight ? mean / weight : value;
  });
}

/** About `n` round numbers from at or below `low` to at or above `high`. */
export function ticks(low, high, n) {
  const span = high - low || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(span / n));
  const step = power * [1, 2, 5, 10].find((factor) => span / n <= power * factor * (1 + 1e-9));
  const first = Math.floor(low / step + 1e-9);
  const last = Math.max(Math.ceil(high / step - 1e-9), first + 1);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Powers of ten around the values; between few of them also their doubles and fives. */
export function logTicks(low, high) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const factors = last - first <= 2 ? [1, 2, 5] : [1];
  const every = Math.ceil((last - first) / 6) || 1;
  const powers = Array.from({ length: last - first + 1 }, (_, i) => first + i).filter((_, i) => i % every === 0 || first + i === last);
  const all = powers.flatMap((power) => factors.map((factor) => Number((factor * 10 ** power).toPrecision(3))));
  const below = all.filter((tick) => tick <= low).at(-1) ?? all[0];
  const above = all.find((tick) => tick >= high) ?? all.at(-1);
  const kept = all.filter((tick) => tick >= below && tick <= above);
  return kept.length > 1 ? kept : [below, below * 10];
}

export function format(value, digits) {
  if (value === 0) return "0";
  if (value !== 0 && Math.abs(value) < 10 ** -Math.min(digits, 3)) return signed(value.toExponential(2));
  return signed(Math.abs(value) >= 10_000 ? Math.round(value).toLocaleString() : value.toFixed(digits));
}

export function compact(value) {
  if (value !== 0 && Math.abs(value) < 0.001) return signed(value.toExponential());
  return Math.abs(value) >= 10_000 ? `${Number((value / 1000).toPrecision(3))}k` : signed(String(value));
}

/** With the sign that is as wide as a digit. */
function signed(number) {
  return number.replaceAll("-", "−");
}

export function clamp(value, low, high) {
  return Math.max(low, Math.min(high, value));
}

export function nearest(positions, at) {
  return positions.reduce((best, x, i) => (Math.abs(x - at) < Math.abs(positions[best] - at) ? i : best), 0);
}

export function element(name, attributes, content) {
  return fill(document.createElement(name), attributes, content);
}

export function svg(name, attributes, content) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, content);
}

function fill(made, attributes, content) {
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (content !== undefined) made.textContent = content;
  return made;
}
