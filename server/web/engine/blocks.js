// Blocks in use, one by one, grouped by request; and the bar of the whole pool above them.
import { drawRings } from "./palette.js";
import { filled } from "./replay.js";

const BAR = 20;
const HEAD = 22; // of a group: the number of the request
const MAX_DRAWN = 4096;

/** Return the side of a block in pixels: smaller if there are many. */
export function sideFor(numBlocks) {
  return numBlocks <= 200 ? 24 : numBlocks <= 800 ? 18 : 14;
}

/** Return how often each block is in the tables of a state, a Map. */
export function holders(rows) {
  const found = new Map();
  for (const row of rows.values())
    for (const block of row.blocks) {
      const known = found.get(block);
      if (known) known.push(row.id);
      else found.set(block, [row.id]);
    }
  return found;
}

/** Draw the pool's bar and all groups; `scene.rows` may be null. Returns the cells, for the arrow keys. */
export function drawBlocks(surface, scene) {
  const { palette, rows, entry, replay, slots, selected, blockSize } = scene;
  const groups = rows ? [...rows.values()].filter((row) => row.blocks.length) : [];
  const numBlocks = groups.reduce((sum, row) => sum + row.blocks.length, 0);
  const side = sideFor(numBlocks);
  const columns = Math.max(Math.floor(surface.width / side), 1);
  let height = BAR + 12;
  let left = MAX_DRAWN;
  const placed = groups.map((row) => {
    const count = Math.min(row.blocks.length, left);
    left -= count;
    const top = height;
    height += HEAD + Math.ceil(count / columns) * side + 6;
    return { row, top, count };
  });
  const width = surface.begin(Math.max(height, BAR + 12));
  drawBar(surface, palette, entry, replay.numBlocks, width);
  const cells = [];
  for (const { row, top, count } of placed) {
    const slot = slots.get(row.id);
    const isSelected = row.id === selected;
    const missing = count < row.blocks.length ? `, ${row.blocks.length - count} not drawn` : "";
    const title = `Request ${row.id}: ${row.blocks.length} blocks${missing}`;
    surface.text(palette.colour("ink"), title, 0, top + HEAD / 2 - 2);
    for (let index = 0; index < count; index++) {
      const x = (index % columns) * side;
      const y = top + HEAD + Math.floor(index / columns) * side;
      const block = row.blocks[index];
      const owners = scene.owners.get(block);
      drawCell(surface, palette, slot, x, y, side - 2, filled(row, index, blockSize) / blockSize, owners.length > 1);
      if (isSelected) surface.frame(palette.colour("ink"), x, y, side - 2, side - 2, 2);
      const what = { kind: owners.length > 1 ? "shared" : "used", request: row.id, index, block, owners };
      surface.hit(what, x, y, side, side);
      cells.push(surface.hits.at(-1));
    }
  }
  return cells;
}

function drawBar(surface, palette, entry, numBlocks, width) {
  if (!entry || !numBlocks) return;
  const part = (number) => (number ? Math.max((number / numBlocks) * width, 3) : 0); // visible in a large pool, too
  const [used, cached] = [part(entry.numUsed), part(entry.numCached)];
  surface.fill(palette.colour("soft"), 0, 0, width, BAR);
  surface.fill(palette.colour("accent"), 0, 0, used, BAR);
  surface.fill(palette.cached, used, 0, cached, BAR);
  surface.frame(palette.colour("line-strong"), 0, 0, width, BAR);
  surface.hit({ kind: "free" }, 0, 0, width, BAR);
  surface.hit({ kind: "cached" }, used, 0, cached, BAR);
  surface.hit({ kind: "pool" }, 0, 0, used, BAR);
}

/** Draw a block: filled from below by the share of its tokens that are computed, with a corner if it is shared. */
function drawCell(surface, palette, slot, x, y, side, share, isShared) {
  const height = Math.round((side - 2) * share);
  surface.fill(palette.colour("line-strong"), x, y, side, side);
  if (height < side - 2) surface.fill(palette.colour("soft"), x + 1, y + 1, side - 2, side - 2 - height);
  surface.fill(palette.fillOf(slot), x + 1, y + side - 1 - height, side - 2, height);
  drawRings(surface.context, slot, x, y, side, side, palette.colour("paper"));
  if (!isShared) return;
  const { context } = surface;
  const size = Math.max(side / 2, 7);
  context.fillStyle = palette.colour("ink");
  context.beginPath();
  context.moveTo(x + side - size, y);
  context.lineTo(x + side, y);
  context.lineTo(x + side, y + size);
  context.fill();
}
