// Scales of charts: round steps of axes, their ends, and times as text.

/** Return the smallest of 1, 2, 5, 10, ... that divides `range` into at most `most` parts. */
export function roundStep(range, most) {
  const raw = Math.max(range / most, Number.MIN_VALUE);
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= raw * (1 - 1e-9));
}

/** Return where a chart of these values ends: at the 99th percentile if single ones are much larger. */
export function cap(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const largest = sorted.at(-1) ?? 0;
  if (sorted.length < 20) return largest;
  const high = sorted[Math.min(Math.ceil(0.99 * sorted.length) - 1, sorted.length - 2)];
  return largest > 1.5 * high ? high : largest;
}

/** Return a time of day, such as 14:03:09. */
export function clock(ms) {
  const date = new Date(ms);
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map((part) => String(part).padStart(2, "0")).join(":");
}

/** Return milliseconds as text: 12.3 ms, 1.25 s. */
export function duration(ms) {
  if (ms >= 10_000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  return `${ms.toFixed(ms < 100 ? 1 : 0)} ms`;
}
