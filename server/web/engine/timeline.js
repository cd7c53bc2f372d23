// The time line: requests, steps and the pool over one axis of time.
import { counted } from "../nodes.js";
import { drawRings } from "./palette.js";
import { cap, clock, roundStep } from "./scale.js";

const LEFT = 56; // pixels for labels
const RIGHT = 8;
const LANE = 18;
const BAR = 14;
const MAX_LANES = 12;
const STEPS = 84;
const POOL = 56;
const GAP = 22; // between tracks, with the title of the next one
const AXIS = 20;
const SWATCH = 10;

/** Assign lanes to spans, the first free one each; return the spans with a lane and the number of those left out. */
export function inLanes(spans, maxLanes = MAX_LANES) {
  const ends = [];
  const placed = [];
  let leftOut = 0;
  for (const span of [...spans].sort((a, b) => a.parts[0].from - b.parts[0].from)) {
    const from = span.parts[0].from;
    let lane = ends.findIndex((end) => end !== null && end <= from);
    if (lane < 0) lane = ends.length;
    if (lane >= maxLanes) leftOut++;
    else {
      ends[lane] = span.end;
      placed.push({ span, lane });
    }
  }
  return { placed, leftOut, numLanes: Math.max(ends.length, 1) };
}

/** Draw all tracks from `from` to `to` (ms since 1970); `scene` is what view.js shows. */
export function drawTimeline(surface, scene, from, to) {
  const { palette, replay } = scene;
  const { placed, leftOut, numLanes: numNeeded } = inLanes(replay.spans.between(from, to));
  const numLanes = 4 * Math.ceil(numNeeded / 4); // the tracks below do not jump with each request
  const requestsTop = GAP;
  const stepsTop = requestsTop + numLanes * LANE + GAP;
  const poolTop = stepsTop + STEPS + GAP;
  const bottom = poolTop + POOL;
  const width = surface.begin(bottom + AXIS);
  const plot = { left: LEFT, width: width - LEFT - RIGHT, from, to };
  const x = (time) => LEFT + ((time - from) / (to - from)) * plot.width;
  const entries = entriesBetween(replay.entries, from, to);
  timeAxis(surface, palette, x, from, to, requestsTop, bottom, plot.width);
  const more = leftOut ? `, ${leftOut} more are not shown` : "";
  surface.text(palette.colour("ink"), `Requests${more}`, LEFT, requestsTop - 10);
  for (const { span, lane } of placed) drawSpan(surface, scene, span, requestsTop + lane * LANE, x, plot);
  const [prompt, answer] = [palette.colour("prompt"), palette.colour("accent")];
  caption(surface, palette, "Time of a step:", { prompt, answer }, stepsTop - 10);
  drawSteps(surface, palette, entries, stepsTop, x, plot);
  const pool = `Pool of ${counted(replay.numBlocks)} blocks:`;
  caption(surface, palette, pool, { "in use": palette.colour("accent"), cached: palette.cached }, poolTop - 10);
  const last = entries.at(-1);
  const until = scene.isLive && last ? [...entries, { ...last, time: to }] : entries; // it stays as it is
  drawPool(surface, scene, until, poolTop, x, plot);
  if (scene.entry && scene.entry.time >= from && scene.entry.time <= to)
    surface.fill(palette.colour("accent"), Math.round(x(scene.entry.time)) - 1, requestsTop, 2, bottom - requestsTop);
}

/** Write the title of a track, and what its colours mean: `fills` by name. */
function caption(surface, palette, text, fills, y) {
  let x = LEFT + surface.text(palette.colour("ink"), text, LEFT, y);
  for (const [name, fill] of Object.entries(fills)) {
    surface.fill(fill, x + 8, y - SWATCH / 2, SWATCH, SWATCH);
    surface.frame(palette.colour("line-strong"), x + 8, y - SWATCH / 2, SWATCH, SWATCH);
    x += 12 + SWATCH;
    x += surface.text(palette.colour("ink"), name, x, y);
  }
}

function entriesBetween(entries, from, to) {
  let first = entries.length;
  while (first > 0 && entries[first - 1].time >= from) first--;
  let last = entries.length;
  while (last > first && entries[last - 1].time > to) last--;
  return entries.slice(first, last);
}

function timeAxis(surface, palette, x, from, to, top, bottom, width) {
  const step = Math.max(1000 * roundStep((to - from) / 1000, Math.max(width / 90, 2)), 1000);
  for (let time = Math.ceil(from / step) * step; time <= to; time += step) {
    surface.fill(palette.colour("line"), Math.round(x(time)), top, 1, bottom - top);
    if (x(time) > LEFT + 20 && x(time) < LEFT + width - 20)
      surface.text(palette.colour("muted"), clock(time), x(time), bottom + AXIS / 2, "center");
  }
}

function drawSpan(surface, scene, span, top, x, plot) {
  const { palette, slots, selected } = scene;
  const slot = slots.get(span.id) ?? null;
  const plain = slot === null ? palette.colour("line-strong") : palette.colourOf(slot);
  const right = plot.left + plot.width;
  for (const part of span.parts) {
    const start = Math.max(x(part.from), plot.left);
    const end = Math.min(x(part.to ?? plot.to), right);
    if (end <= start && part.to !== null) continue;
    const width = Math.max(end - start, 2);
    if (part.kind === "answer") {
      surface.fill(slot === null ? plain : palette.fillOf(slot), start, top, width, BAR);
      if (slot !== null) drawRings(surface.context, slot, start, top, width, BAR, palette.colour("paper"));
      surface.frame(palette.colour("line-strong"), start, top, width, BAR);
    } else if (part.kind === "prompt") {
      surface.fill(palette.colour("paper"), start, top, width, BAR);
      surface.fill(plain, start, top + BAR / 2 - 1, width, BAR / 2 + 1);
      surface.frame(plain, start, top, width, BAR);
    } else if (part.kind === "queued") {
      surface.fill(palette.colour("line-strong"), start, top + BAR / 2 - 1, width, 2);
    } else {
      for (let dot = start; dot < start + width; dot += 6)
        surface.fill(palette.colour("warn"), dot, top + BAR / 2 - 2, 3, 4);
    }
    surface.hit({ kind: part.kind, request: span.id, part }, start, top, width, BAR);
  }
  const first = Math.max(x(span.parts[0].from), plot.left);
  const end = Math.min(span.end === null ? right : x(span.end), right);
  if (span.id === selected) surface.frame(palette.colour("ink"), first - 2, top - 2, end - first + 4, BAR + 4, 2);
  label(surface, palette, String(span.id), first, end, top);
}

/** Write the number of a request at the start of its bars, if it has room there. */
function label(surface, palette, text, first, end, top) {
  const width = 8 * text.length + 6;
  if (end - first < width + 4) return;
  surface.fill(palette.colour("paper"), first + 2, top + 1, width, BAR - 2);
  surface.text(palette.colour("ink"), text, first + 2 + width / 2, top + BAR / 2 + 1, "center");
}

function drawSteps(surface, palette, entries, top, x, plot) {
  const works = entries.filter((entry) => entry.ms > 0);
  const highest = Math.max(cap(works.map((entry) => entry.ms)), 1);
  const grid = roundStep(highest, 3);
  for (let value = 0; value <= highest; value += grid) {
    const y = Math.round(top + STEPS - (value / highest) * STEPS);
    surface.fill(palette.colour("line"), plot.left, y, plot.width, 1);
    surface.text(palette.colour("muted"), value ? `${value} ms` : "0", plot.left - 4, y, "right");
  }
  const least = plot.width / 400;
  for (const entry of works) {
    const end = x(entry.time);
    const width = Math.max(end - x(entry.time - entry.ms) - 0.5, least, 1);
    const height = (Math.min(entry.ms, highest) / highest) * STEPS;
    const share = entry.numPrefill / Math.max(entry.numPrefill + entry.numDecode, 1);
    const left = Math.max(end - width, plot.left);
    surface.fill(palette.colour("accent"), left, top + STEPS - height, end - left, height);
    surface.fill(palette.colour("prompt"), left, top + STEPS - height, end - left, height * share);
    if (entry.ms > highest) arrow(surface, palette.colour("ink"), (left + end) / 2, top);
    surface.hit({ kind: "step", entry }, left - 1, top, Math.max(end - left + 2, 3), STEPS);
  }
}

/** Draw the arrow of a bar that goes on beyond the chart. */
function arrow(surface, colour, x, top) {
  const { context } = surface;
  context.fillStyle = colour;
  context.beginPath();
  context.moveTo(x, top - 8);
  context.lineTo(x - 4, top - 1);
  context.lineTo(x + 4, top - 1);
  context.fill();
}

/** Return the axis of the pool, in blocks: it ends with what was held, since most of a large pool is empty. */
export function poolAxis(entries, numBlocks) {
  const most = Math.max(...entries.map((entry) => entry.numUsed + entry.numCached), 1);
  const step = Math.max(roundStep(most, 2), 1);
  return { step, end: Math.min(step * Math.ceil(most / step), numBlocks) };
}

function drawPool(surface, { palette, replay }, entries, top, x, plot) {
  if (!replay.numBlocks) return;
  const { step, end } = poolAxis(entries, replay.numBlocks);
  for (let value = 0; value <= end; value += step) {
    const y = Math.round(top + POOL - (value / end) * POOL);
    surface.fill(palette.colour("line"), plot.left, y, plot.width, 1);
    surface.text(palette.colour("muted"), counted(value), plot.left - 4, y, "right");
  }
  const area = (fill, valueOf, baseOf) => {
    const { context } = surface;
    context.fillStyle = fill;
    context.beginPath();
    const y = (value) => top + POOL - (value / end) * POOL;
    entries.forEach((entry, index) => {
      if (index) context.lineTo(x(entry.time), y(valueOf(entries[index - 1])));
      context.lineTo(x(entry.time), y(valueOf(entry)));
    });
    for (const entry of [...entries].reverse()) context.lineTo(x(entry.time), y(baseOf(entry)));
    context.fill();
  };
  if (entries.length < 2) return;
  area(palette.cached, (entry) => entry.numUsed + entry.numCached, (entry) => entry.numUsed);
  area(palette.colour("accent"), (entry) => entry.numUsed, () => 0);
  const [first, last] = [x(entries[0].time), x(entries.at(-1).time)];
  surface.hit({ kind: "pool" }, first, top, last - first, POOL);
}
