// Sizes, counts and times as text.

/** Return a size in binary units, such as 8 MiB. */
export function bytes(count) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${Number.isInteger(value) || unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}

/** Return a number of parameters, such as 135 million or 1.2 billion. */
export function parameters(count) {
  return count < 1e9 ? `${Math.round(count / 1e6)} million` : `${(count / 1e9).toFixed(1)} billion`;
}

/** Return seconds as text, such as 3 h 12 min. */
export function elapsed(seconds) {
  const whole = Math.floor(seconds);
  const days = Math.floor(whole / 86_400);
  const hours = Math.floor(whole / 3600) % 24;
  const minutes = Math.floor(whole / 60) % 60;
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}
