// The time line as a table, for screen readers and for exact numbers.
import { counted, element } from "../nodes.js";
import { clock, duration } from "./scale.js";

const NUM_ROWS = 20;
const COUNTS = {
  numPrefill: "Prompt tokens",
  numDecode: "Answer tokens",
  numRunning: "Running",
  numWaiting: "Waiting",
  numUsed: "Blocks in use",
  numCached: "Cached",
};
const HEADS = ["Step", "Time", "Took", ...Object.values(COUNTS)];

export class StepTable {
  constructor(replay, redraw) {
    this.replay = replay;
    this.body = element("tbody");
    const head = element("tr", {}, ...HEADS.map((text) => element("th", { scope: "col", class: "number" }, text)));
    const table = element("table", {}, element("thead", {}, head), this.body);
    this.node = element(
      "details",
      { ontoggle: redraw },
      element("summary", {}, `The last ${NUM_ROWS} steps as a table`),
      element("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": "Steps" }, table),
    );
  }

  /** Fill the table, if it is open. */
  draw({ index }) {
    if (!this.node.open) return;
    const entries = this.replay.entries.slice(Math.max(index + 1 - NUM_ROWS, 0), index + 1).reverse();
    this.body.replaceChildren(...entries.map(rowOf));
  }
}

function rowOf(entry) {
  const counts = Object.keys(COUNTS).map((name) => counted(entry[name]));
  const texts = [counted(entry.step), clock(entry.time), duration(entry.ms), ...counts];
  return element("tr", {}, ...texts.map((text) => element("td", { class: "number" }, text)));
}
