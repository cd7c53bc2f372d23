// The list of requests: running ones and the queue, each with its look, its phase and its tokens.
import { button, counted, element } from "../nodes.js";
import { lookName } from "./colours.js";
import { drawRings } from "./palette.js";
import { phaseOf } from "./spans.js";
import { Surface } from "./surface.js";

const PHASES = {
  prompt: "reading the prompt",
  answer: "answering",
  queued: "waiting",
  preempted: "preempted, waiting",
};
const REASONS = {
  "behind others": "behind others",
  "batch full": "the batch is full",
  "token budget": "the tokens of a step are used up",
  "no free blocks": "too few free blocks",
  "prefix being computed": "its beginning is being computed by another request",
  "prefix being read": "its beginning is being read from the file",
  "grammar being compiled": "its grammar is being compiled",
  "adapter being read": "its adapter is being read from the disk",
};
const SWATCH = 16;
const MAX_ROWS = 64;

/** Set the children of a node; existing ones stay where they are, so that they can be pressed meanwhile. */
export function update(parent, nodes) {
  const wanted = new Set(nodes);
  for (const node of [...parent.children]) if (!wanted.has(node)) node.remove();
  nodes.forEach((node, index) => {
    if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
  });
}

export class Requests {
  /** `onSelect` gets the number of the request whose row was pressed, and where. */
  constructor(onSelect) {
    this.onSelect = onSelect;
    this.rows = new Map();
    this.body = element("tbody");
    this.rest = element("p", { class: "meta" });
    const heads = ["Request", "State", "Tokens", "Blocks"].map((text) =>
      element("th", { scope: "col", class: text === "Blocks" ? "number" : null }, text),
    );
    this.node = element(
      "section",
      { class: "panel requests" },
      element("h2", {}, "Requests"),
      element("table", {}, element("thead", {}, element("tr", {}, ...heads)), this.body),
      this.rest,
    );
  }

  /** Show the running requests of `scene.rows` and those that wait at the time shown. */
  draw(scene) {
    const all = [...scene.shown.values()];
    const listed = all.slice(0, MAX_ROWS).map((one) => this.#row(one, scene));
    update(this.body, listed.map((row) => row.node));
    for (const id of [...this.rows.keys()]) if (!scene.shown.has(id)) this.rows.delete(id);
    const numMore = all.length - listed.length;
    this.rest.textContent = all.length === 0 ? "No requests." : numMore ? `and ${counted(numMore)} more` : "";
    this.node.querySelector("table").hidden = all.length === 0;
  }

  #row(one, { palette, slots, selected, themeCount }) {
    if (!this.rows.has(one.id)) this.rows.set(one.id, this.#newRow(one.id));
    const row = this.rows.get(one.id);
    const slot = slots.get(one.id) ?? null;
    const key = `${slot} ${themeCount}`;
    if (row.key !== key) {
      row.key = key;
      drawSwatch(row.surface, palette, slot);
      row.press.setAttribute("aria-label", `Request ${one.id}, ${slot === null ? "without a colour" : lookName(slot)}`);
    }
    row.press.setAttribute("aria-pressed", String(one.id === selected));
    write(row.state, stateOf(one));
    const { numPrompt, numTokens, numComputed, limit } = one;
    const part = (number) => `${(100 * number) / Math.max(limit, 1)}%`;
    row.bar.style.setProperty("--computed", part(numComputed));
    row.bar.style.setProperty("--prompt", part(numPrompt));
    row.bar.style.setProperty("--tokens", part(numTokens));
    const text = `${counted(numComputed)} of ${counted(numTokens)} computed, limit ${counted(limit)}`;
    write(row.tokens, limit ? text : "");
    row.bar.hidden = !limit;
    write(row.blocks, one.blocks ? counted(one.blocks.length) : "");
    return row;
  }

  #newRow(id) {
    const canvas = element("canvas", { class: "swatch", "aria-hidden": "true" });
    const onPress = ({ currentTarget }) => this.onSelect(id, currentTarget.getBoundingClientRect());
    const press = button("", onPress, { class: "quiet" });
    press.append(canvas, ` ${id}`);
    const [state, blocks] = [element("td"), element("td", { class: "number" })];
    const [bar, tokens] = [element("div", { class: "bar", "aria-hidden": "true" }), element("span", { class: "meta" })];
    const cells = [element("td", {}, press), state, element("td", {}, bar, tokens), blocks];
    const node = element("tr", { "data-request": id }, ...cells);
    return { node, press, state, bar, tokens, blocks, surface: new Surface(canvas), key: "" };
  }
}

function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Return the state of a request in words. */
export function stateOf(one) {
  const phase = one.phase ?? phaseOf(one);
  const reason = one.reason ? `: ${REASONS[one.reason] ?? one.reason}` : "";
  return `${PHASES[phase]}${reason}`;
}

/** Return the words for why a request waits. */
export const reasonText = (reason) => REASONS[reason] ?? reason;

function drawSwatch(surface, palette, slot) {
  surface.begin(SWATCH, SWATCH);
  surface.fill(slot === null ? palette.colour("soft") : palette.fillOf(slot), 0, 0, SWATCH, SWATCH);
  if (slot !== null) drawRings(surface.context, slot, 0, 0, SWATCH, SWATCH, palette.colour("paper"));
  surface.frame(palette.colour("line-strong"), 0, 0, SWATCH, SWATCH);
}
