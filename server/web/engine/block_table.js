// The block table of the selected request: which block holds which of its tokens.
import { button, counted, element } from "../nodes.js";
import { filled } from "./replay.js";
import { update } from "./requests.js";

const MAX_ROWS = 256;

export class BlockTable {
  /** `onPress` gets the request, the index of the block in its table and where the row is. */
  constructor(onPress) {
    this.onPress = onPress;
    this.rows = [];
    this.request = null;
    this.head = element("h2", {}, "Block table");
    this.body = element("tbody");
    this.hint = element("p", { class: "meta" });
    const heads = ["Tokens", "Block", "Computed", "Held by"].map((text) =>
      element("th", { scope: "col", class: text === "Computed" ? "number" : null }, text),
    );
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), this.body);
    const region = { class: "scroller", tabindex: "0", role: "region", "aria-label": "Block table" };
    this.scroller = element("div", region, table);
    this.node = element("section", { class: "panel table" }, this.head, this.hint, this.scroller);
  }

  draw({ rows, selected, blockSize, owners }) {
    const row = rows?.get(selected);
    this.head.textContent = row ? `Block table of request ${row.id}` : "Block table";
    this.scroller.hidden = !row;
    this.hint.textContent = row ? "" : hintFor(rows, selected);
    if (!row) return update(this.body, []);
    if (this.request !== row.id) [this.request, this.rows] = [row.id, []];
    const count = Math.min(row.blocks.length, MAX_ROWS);
    while (this.rows.length < count) this.rows.push(this.#newRow(this.rows.length));
    for (let index = 0; index < count; index++) {
      const { cells, press } = this.rows[index];
      const block = row.blocks[index];
      const others = owners.get(block).length - 1;
      press.textContent = String(block);
      cells[0].textContent = tokenRange(row, index, blockSize);
      cells[2].textContent = String(filled(row, index, blockSize));
      cells[3].textContent = others ? `${others + 1} requests` : "";
    }
    update(this.body, this.rows.slice(0, count).map((one) => one.node));
    const more = row.blocks.length - count;
    if (more) this.hint.textContent = `${counted(more)} more blocks are not listed.`;
  }

  #newRow(index) {
    const onPress = ({ currentTarget }) => this.onPress(this.request, index, currentTarget.getBoundingClientRect());
    const press = button("", onPress, { class: "quiet" });
    const cells = [element("td"), element("td", {}, press), element("td", { class: "number" }), element("td")];
    return { node: element("tr", {}, ...cells), cells, press };
  }
}

/** Return the range of tokens in block `index` of a row, such as "48 to 63". */
export function tokenRange(row, index, blockSize) {
  const first = index * blockSize;
  return `${counted(first)} to ${counted(Math.min(first + blockSize, Math.max(row.numTokens, first + 1)) - 1)}`;
}

function hintFor(rows, selected) {
  if (!rows) return "The tables of this step are not known.";
  if (selected === null) return "Select a request to see where its tokens are.";
  return `Request ${selected} has no blocks at this step.`;
}
