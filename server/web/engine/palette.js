// Palette: the theme's colours and the patterns of requests, as fills of a canvas.
import { CATEGORIES, look } from "./colours.js";

const TILE = 8; // pixels of a pattern
const NAMES = ["paper", "soft", "line", "line-strong", "ink", "muted", "accent", "prompt", "warn"];

export class Palette {
  /** `probe` is an element whose colour may be changed: only there light-dark() has a value. */
  constructor(probe) {
    this.probe = probe;
    this.read();
  }

  /** Read the colours again, after the theme has changed. */
  read() {
    const resolved = (name) => {
      this.probe.style.color = `var(${name})`;
      return getComputedStyle(this.probe).color;
    };
    this.colours = new Map(NAMES.map((name) => [name, resolved(`--${name}`)]));
    for (const number of CATEGORIES) this.colours.set(`category-${number}`, resolved(`--category-${number}`));
    this.fills = new Map();
  }

  /** Return whether the colours have changed since they were read. */
  isOld() {
    this.probe.style.color = "var(--ink)";
    return getComputedStyle(this.probe).color !== this.colours.get("ink");
  }

  colour(name) {
    return this.colours.get(name);
  }

  /** Return the plain colour of a slot. */
  colourOf(slot) {
    return this.colour(`category-${look(slot).category}`);
  }

  /** Return the fill of a slot: its colour, with its pattern from the ninth on. */
  fillOf(slot) {
    const { category, pattern } = look(slot);
    return this.#fill(this.colour(`category-${category}`), pattern, this.colour("paper"));
  }

  /** Return the fill of cached blocks: a grey hatch. */
  get cached() {
    return this.#fill(this.colour("soft"), "rising", this.colour("line-strong"));
  }

  #fill(colour, pattern, line) {
    if (pattern === "plain") return colour;
    const key = `${colour} ${pattern}`;
    if (!this.fills.has(key)) this.fills.set(key, made(colour, pattern, line));
    return this.fills.get(key);
  }
}

/** Draw the rings of a slot inside a rectangle, if it has some. */
export function drawRings(context, slot, x, y, width, height, colour) {
  const { rings } = look(slot);
  context.strokeStyle = colour;
  context.lineWidth = 1;
  for (let ring = 1; ring <= rings; ring++)
    context.strokeRect(x + 2 * ring, y + 2 * ring, width - 4 * ring, height - 4 * ring);
}

function made(colour, pattern, line) {
  const canvas = new OffscreenCanvas(TILE, TILE);
  const context = canvas.getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, TILE, TILE);
  context.strokeStyle = context.fillStyle = line;
  context.lineWidth = 2;
  context.beginPath();
  const draw = (fromX, fromY, toX, toY) => {
    context.moveTo(fromX, fromY);
    context.lineTo(toX, toY);
  };
  for (const shift of [-TILE, 0, TILE]) {
    if (pattern === "rising" || pattern === "cross") draw(shift, TILE, shift + TILE, 0);
    if (pattern === "falling" || pattern === "cross") draw(shift, 0, shift + TILE, TILE);
  }
  if (pattern === "upright" || pattern === "grid") draw(TILE / 2, 0, TILE / 2, TILE);
  if (pattern === "level" || pattern === "grid") draw(0, TILE / 2, TILE, TILE / 2);
  context.stroke();
  if (pattern === "dots") context.fillRect(TILE / 2 - 1.5, TILE / 2 - 1.5, 3, 3);
  return context.createPattern(canvas, "repeat");
}
