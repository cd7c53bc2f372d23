// The engine view: what the engine does now, or did at one of its last steps.
import { address } from "../api.js";
import { counted, element } from "../nodes.js";
import { BlockTable } from "./block_table.js";
import { drawBlocks } from "./blocks.js";
import { EventList } from "./event_list.js";
import { explanationOf } from "./explanations.js";
import { Palette } from "./palette.js";
import { Explainer } from "./popover.js";
import { Replay } from "./replay.js";
import { Requests } from "./requests.js";
import { sceneOf } from "./scene.js";
import { Scrubber } from "./scrubber.js";
import { StepTable } from "./step_table.js";
import { follow } from "./stream.js";
import { Surface } from "./surface.js";
import { Tiles } from "./tiles.js";
import { drawTimeline } from "./timeline.js";

const SILENT_MS = 6000; // without a snapshot: then the view is old
const REPLACING = "The engine is being replaced. Requests wait for the next one.";

/** Show the engine in `root` until `signal` is aborted. */
export function mount(root, { signal }) {
  const replay = new Replay();
  const probe = element("span", { class: "for-readers", "aria-hidden": "true" });
  const parts = partsOf(replay, { redraw, choose, explain });
  const { scrubber, events, timeline, blocks, status, page } = parts;
  root.append(element("link", { rel: "stylesheet", href: address("web/engine/engine.css") }), page, probe);
  const explainer = new Explainer(root);
  const palette = new Palette(probe);
  let view = null; // the latest snapshot
  let heardAt = null; // performance.now() at that time
  let trouble = "";
  let chosen = null; // the request selected by the reader
  let scene = null;
  let cells = [];
  let focused = 0; // the cell of the arrow keys
  let themeCount = 0;
  let isRequested = false;

  function redraw() {
    if (isRequested || signal.aborted) return;
    isRequested = true;
    requestAnimationFrame(() => {
      isRequested = false;
      if (!signal.aborted) draw();
    });
  }

  function draw() {
    if (palette.isOld()) {
      palette.read();
      themeCount++;
    }
    scene = sceneOf({ replay, scrubber, view, palette, chosen, themeCount, before: scene });
    const { tiles, requests, blockTable, stepTable } = parts;
    for (const part of [scrubber, tiles, requests, blockTable, events, stepTable]) part.draw(scene);
    drawTimeline(timeline, scene, scene.range.from, scene.range.to);
    cells = drawBlocks(blocks, scene);
    focused = Math.min(focused, Math.max(cells.length - 1, 0));
    parts.summary.textContent = summaryOf(scene);
    parts.unknown.hidden = !view || scene.rows !== null;
    showAge();
  }

  function showAge() {
    const seconds = heardAt === null ? 0 : (performance.now() - heardAt) / 1000;
    const isOld = heardAt !== null && (trouble !== "" || 1000 * seconds > SILENT_MS);
    page.classList.toggle("old", isOld);
    const heard = isOld ? ` Last heard ${seconds.toFixed(0)} s ago.` : "";
    const now = view?.is_replacing ? REPLACING : isOld ? "The server is silent." : "";
    const text = `${trouble || now}${heard}`;
    if (status.textContent !== text) status.textContent = text;
  }

  function choose(id, place) {
    chosen = id;
    draw();
    explain({ kind: "request", request: id }, place);
  }

  function explain(what, place) {
    if (isRequested) draw(); // with the snapshot that came last
    const explanation = explanationOf(what, scene);
    if (explanation) explainer.show(place, ...explanation);
  }

  function press(surface, event) {
    const hit = surface.at(event);
    if (!hit) return;
    const place = surface.place(hit);
    if (hit.what.request) chosen = hit.what.request;
    if (hit.what.kind === "step") scrubber.set(hit.what.entry);
    draw();
    explain(hit.what, place);
  }

  /** Move over the blocks with the arrow keys, and explain one with Enter. */
  function key(event) {
    const cell = cells[focused];
    if (!cell) return;
    const below = cells.findIndex((one, index) => index > focused && one.y > cell.y && one.x >= cell.x);
    const above = cells.findLastIndex((one, index) => index < focused && one.y < cell.y && one.x <= cell.x);
    const to = { ArrowRight: focused + 1, ArrowLeft: focused - 1, ArrowDown: below, ArrowUp: above }[event.key];
    if (event.key === "Enter" || event.key === " ") explain(cell.what, blocks.place(cell));
    else if (to === undefined) return;
    event.preventDefault();
    if (to === undefined || !cells[to]) return;
    focused = to;
    chosen = cells[to].what.request;
    draw();
    const { x, y, width, what } = cells[to];
    blocks.frame(palette.colour("accent"), x, y, width - 2, width - 2, 3);
    const shared = what.owners.length > 1 ? ", shared" : "";
    parts.spoken.textContent = `Block ${what.block} of request ${what.request}${shared}`;
  }

  timeline.canvas.addEventListener("click", (event) => press(timeline, event));
  blocks.canvas.addEventListener("click", (event) => press(blocks, event));
  blocks.canvas.addEventListener("keydown", key);
  timeline.canvas.addEventListener("keydown", ({ key: name }) => {
    if (name === "ArrowLeft" || name === "ArrowRight") scrubber.move(name === "ArrowLeft" ? -1 : 1);
  });
  events.onFilter = redraw;
  const sizes = new ResizeObserver(redraw);
  sizes.observe(page);
  const ticking = setInterval(showAge, 1000);
  signal.addEventListener("abort", () => (clearInterval(ticking), sizes.disconnect()));
  redraw();
  follow({
    signal,
    onTrouble: (text) => ((trouble = text), showAge()),
    onView: (snapshot) => {
      view = snapshot;
      heardAt = performance.now();
      replay.take(snapshot);
      events.take(snapshot, timeOf(replay, snapshot));
      redraw();
    },
  });
}

/** Return the pool in words. */
function summaryOf({ entry, replay, blockSize }) {
  if (!entry) return "Waiting for the engine.";
  const used = `${counted(entry.numUsed)} of ${counted(replay.numBlocks)} blocks in use`;
  return `${used}; ${counted(entry.numCached)} free blocks still hold reusable text. One block is ${blockSize} tokens.`;
}

/** Return a function that returns the time of a step of a snapshot. */
function timeOf(replay, snapshot) {
  const times = new Map();
  for (let index = replay.entries.length - 1; index >= 0 && times.size < 1000; index--)
    times.set(replay.entries[index].step, replay.entries[index].time);
  return (step) => times.get(step) ?? 1000 * snapshot.time;
}

/** Make the parts of the page. */
function partsOf(replay, { redraw, choose, explain }) {
  const scrubber = new Scrubber(replay, redraw);
  const tiles = new Tiles();
  const requests = new Requests(choose);
  const blockTable = new BlockTable((request, index, place) => explain({ kind: "used", request, index }, place));
  const events = new EventList((event, place) => explain({ kind: "event", event }, place));
  const stepTable = new StepTable(replay, redraw);
  const timelineCanvas = element("canvas", {
    tabindex: "0",
    role: "application",
    "aria-label": "Time line of requests, steps and pool. Arrow keys go step by step. The table below has the numbers.",
  });
  const blocksCanvas = element("canvas", {
    tabindex: "0",
    role: "application",
    "aria-label": "Blocks in use by request. Arrow keys move, Enter explains a block. The block table has the numbers.",
  });
  const status = element("p", { class: "status", role: "status" });
  const summary = element("p", { class: "meta" });
  const spoken = element("p", { class: "for-readers", "aria-live": "polite" });
  const unknownText = "Single blocks of this step are not known. With several replicas the server sends totals only.";
  const unknown = element("p", { class: "meta", hidden: true }, unknownText);
  const pool = [summary, unknown, blocksCanvas, spoken];
  const page = element(
    "div",
    { class: "engine-view" },
    status,
    scrubber.node,
    tiles.node,
    element("section", { class: "panel" }, element("h2", {}, "Time line"), legend(), timelineCanvas, stepTable.node),
    element(
      "div",
      { class: "columns" },
      element("section", { class: "panel" }, element("h2", {}, "Blocks in use"), ...pool),
      element("div", {}, requests.node, blockTable.node),
    ),
    events.node,
  );
  const panels = { scrubber, tiles, requests, blockTable, events, stepTable };
  const surfaces = { timeline: new Surface(timelineCanvas), blocks: new Surface(blocksCanvas) };
  return { ...panels, ...surfaces, status, summary, spoken, unknown, page };
}

function legend() {
  const names = [
    ["queued", "waiting"],
    ["prompt", "reading the prompt"],
    ["answer", "answering"],
    ["preempted", "preempted"],
    ["cached", "cached blocks"],
  ];
  const items = names.map(([name, text]) => element("li", {}, element("i", { class: `key ${name}` }), text));
  return element("ul", { class: "legend meta" }, ...items);
}
