// Six tiles: a number each, and its trend over the last minute.
import { element } from "../nodes.js";
import { duration } from "./scale.js";
import { Surface } from "./surface.js";

const TREND_MS = 60_000;
const NUM_BINS = 60;
const RATE_MS = 2000; // over which a rate is a mean
const HEIGHT = 28;

const whole = (number) => Math.round(number).toLocaleString("en-US");

/** Each tile: its name, how bins are summed up, and how a number is written. */
const TILES = [
  { name: "Running", gauge: (entry) => entry.numRunning, text: whole },
  { name: "Waiting", gauge: (entry) => entry.numWaiting, text: whole },
  { name: "Prompt tokens", unit: "per second", rate: (entry) => entry.numPrefill, text: whole },
  { name: "Answer tokens", unit: "per second", rate: (entry) => entry.numDecode, text: whole },
  { name: "Step", unit: "mean time", mean: (entry) => entry.ms, text: duration },
  {
    name: "Pool in use",
    gauge: (entry, numBlocks) => (100 * entry.numUsed) / Math.max(numBlocks, 1),
    text: (share) => `${share.toFixed(share < 10 ? 1 : 0)} %`,
  },
];

/** Return the value of a tile over entries that took `ms` together. */
export function valueOf(tile, entries, ms, numBlocks) {
  if (tile.gauge) return entries.length ? tile.gauge(entries.at(-1), numBlocks) : null;
  if (tile.rate) return (1000 * entries.reduce((sum, entry) => sum + tile.rate(entry), 0)) / ms;
  const works = entries.filter((entry) => entry.ms > 0);
  return works.length ? works.reduce((sum, entry) => sum + tile.mean(entry), 0) / works.length : null;
}

/** Return the values of a tile in each bin up to `end`; a gauge keeps its value where nothing happened. */
export function trendOf(tile, entries, end, numBlocks) {
  const size = TREND_MS / NUM_BINS;
  const bins = Array.from({ length: NUM_BINS }, () => []);
  let before = null;
  for (let index = entries.length - 1; index >= 0; index--) {
    const bin = NUM_BINS - 1 - Math.floor((end - entries[index].time) / size);
    if (bin < 0) {
      before = entries[index];
      break;
    }
    if (bin < NUM_BINS) bins[bin].unshift(entries[index]);
  }
  let last = tile.gauge && before ? tile.gauge(before, numBlocks) : null;
  return bins.map((bin) => {
    const value = valueOf(tile, bin, size, numBlocks);
    if (!tile.gauge) return value ?? 0;
    return (last = value ?? last);
  });
}

export class Tiles {
  constructor() {
    this.parts = TILES.map((tile) => {
      const number = element("strong");
      const canvas = element("canvas", { role: "img" });
      const unit = tile.unit ? element("span", { class: "meta" }, ` ${tile.unit}`) : null;
      const node = element("div", { class: "tile" }, element("span", {}, tile.name, unit), number, canvas);
      return { tile, number, surface: new Surface(canvas), node };
    });
    this.node = element("section", { class: "tiles", "aria-label": "Numbers" }, ...this.parts.map((part) => part.node));
  }

  draw({ palette, replay, index, end }) {
    const entries = replay.entries.slice(Math.max(index - 5000, 0), index + 1);
    const recent = [];
    for (let at = entries.length - 1; at >= 0 && entries[at].time > end - RATE_MS; at--) recent.unshift(entries[at]);
    for (const { tile, number, surface } of this.parts) {
      const now = valueOf(tile, tile.gauge ? entries.slice(-1) : recent, RATE_MS, replay.numBlocks);
      number.textContent = now === null ? "–" : tile.text(now);
      const trend = trendOf(tile, entries, end, replay.numBlocks);
      drawTrend(surface, palette, trend);
      const most = tile.text(Math.max(...trend.filter((value) => value !== null), 0));
      surface.canvas.setAttribute("aria-label", `${tile.name} in the last minute: at most ${most}`);
    }
  }
}

function drawTrend(surface, palette, trend) {
  const width = surface.begin(HEIGHT);
  const highest = Math.max(...trend.map((value) => value ?? 0), 1e-9);
  const { context } = surface;
  context.strokeStyle = palette.colour("accent");
  context.lineWidth = 1.5;
  context.beginPath();
  let isOpen = false;
  trend.forEach((value, index) => {
    if (value === null) return (isOpen = false);
    const [x, y] = [(index / (trend.length - 1)) * width, HEIGHT - 2 - (value / highest) * (HEIGHT - 4)];
    if (isOpen) context.lineTo(x, y);
    else context.moveTo(x, y);
    isOpen = true;
  });
  context.stroke();
  surface.fill(palette.colour("line"), 0, HEIGHT - 1, width, 1);
}
