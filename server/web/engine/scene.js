// The scene: everything that is shown at one step, for all parts of the view.
import { assign } from "./colours.js";
import { holders } from "./blocks.js";

/** Return the requests at an entry: the running ones of `rows`, then those that wait. A Map from request to facts. */
export function requestsAt(replay, rows, entry, view, isLive) {
  const shown = new Map();
  if (rows) for (const row of rows.values()) shown.set(row.id, { ...row, limit: row.numPrompt + row.maxTokens });
  else if (isLive && view) for (const row of view.running) shown.set(row[0], ofSnapshot(row));
  const waiting = new Map((isLive && view ? view.waiting : []).map((row) => [row[0], row]));
  for (const span of replay.spans.byRequest.values()) {
    if (!entry || shown.has(span.id)) continue;
    const part = span.parts.find((one) => one.from <= entry.time && (one.to === null || one.to > entry.time));
    if (part?.kind !== "queued" && part?.kind !== "preempted") continue;
    const known = waiting.get(span.id);
    const facts = known ? ofSnapshot(known) : { id: span.id, numPrompt: 0, numTokens: 0, numComputed: 0, limit: 0 };
    shown.set(span.id, { ...facts, phase: part.kind, reason: known?.[7] ?? null });
  }
  return shown;
}

function ofSnapshot([id, numPrompt, numTokens, numComputed, maxTokens]) {
  return { id, numPrompt, numTokens, numComputed, limit: numPrompt + maxTokens };
}

/** Return the range of time on the screen: it ends with the latest snapshot, or holds the entry shown. */
export function timeRange(entry, latest, spanMs) {
  const end = entry && entry.time < latest - spanMs * 0.8 ? entry.time + spanMs * 0.2 : latest;
  return { from: end - spanMs, to: end };
}

/** Return what is shown; `before` is the scene before, whose colours stay. */
export function sceneOf({ replay, scrubber, view, palette, chosen, themeCount, before }) {
  const { index } = scrubber;
  const entry = replay.entries[index] ?? null;
  const isLive = scrubber.entry === null;
  const rows = index >= 0 ? replay.stateAt(index) : null;
  const shown = requestsAt(replay, rows, entry, view, isLive);
  const latest = view ? 1000 * view.time : Date.now();
  const range = timeRange(isLive ? null : entry, latest, scrubber.spanMs);
  const ids = [...shown.keys(), ...replay.spans.between(range.from, range.to).map((span) => span.id)];
  const slots = assign([...new Set(ids)], before?.slots);
  const selected = slots.has(chosen) ? chosen : ([...shown.keys()][0] ?? null);
  const owners = holders(rows ?? new Map());
  const blockSize = view?.block_size ?? 16;
  const end = isLive || !entry ? latest : entry.time;
  const drawn = { palette, themeCount, range, slots, selected, owners, blockSize, end };
  return { replay, view, index, entry, isLive, rows, shown, ...drawn };
}
