// Looks of requests: a colour and a pattern, assigned so that no two requests on the screen have the same.

/** Numbers of the theme's eight colours after Okabe and Ito. Grey is last: cached blocks are grey, too, but hatched. */
export const CATEGORIES = [6, 2, 4, 8, 3, 7, 5, 1];
const NAMES = ["blue", "orange", "green", "pink", "light blue", "red", "yellow", "grey"];
export const PATTERNS = ["plain", "rising", "falling", "upright", "level", "grid", "cross", "dots"];
export const NUM_LOOKS = CATEGORIES.length * PATTERNS.length * 4; // the last three quarters have rings

/** Return the slot of each id, a Map: those of `before` stay, new ids get the lowest free slot. */
export function assign(ids, before = new Map()) {
  const slots = new Map();
  for (const id of ids) if (before.has(id)) slots.set(id, before.get(id));
  const taken = new Set(slots.values());
  let next = 0;
  for (const id of ids) {
    if (slots.has(id)) continue;
    while (taken.has(next)) next++;
    slots.set(id, next);
    taken.add(next);
  }
  return slots;
}

/** Return the look of a slot: the first eight are plain colours. */
export function look(slot) {
  const turn = Math.floor(slot / CATEGORIES.length);
  return {
    category: CATEGORIES[slot % CATEGORIES.length],
    pattern: PATTERNS[turn % PATTERNS.length],
    rings: Math.floor(turn / PATTERNS.length) % 4,
  };
}

/** Return a look in words, for readers who cannot see it. */
export function lookName(slot) {
  const { pattern, rings } = look(slot);
  const parts = [NAMES[slot % NAMES.length], pattern === "plain" ? "" : pattern, rings ? `${rings} rings` : ""];
  return parts.filter(Boolean).join(", ");
}
