// Replay: queue, batch and block tables after each step, rebuilt from the changes that come with snapshots.
import { Spans } from "./spans.js";

export const MAX_ENTRIES = 6000;
const KEY_EVERY = 64; // entries between two copies of the state
const MAX_MARKS = 4; // kept for each block

/** Return what is known of a sequence from its table in a snapshot. */
function rowOf([id, numPrompt, maxTokens, numTokens, numComputed, blocks], step, earlier) {
  const since = blocks.map((block, index) => (earlier?.blocks[index] === block ? earlier.since[index] : step));
  return { id, numPrompt, maxTokens, numTokens, numComputed, blocks: [...blocks], since };
}

/** Apply the change of one step to a state, a Map from request to row. */
export function apply(rows, change) {
  const [step, , , , , , joined, moved, ended, preempted] = change;
  for (const id of ended) rows.delete(id);
  for (const id of preempted) rows.delete(id);
  const listed = new Set();
  for (const table of joined) {
    rows.set(table[0], rowOf(table, step, rows.get(table[0])));
    listed.add(table[0]);
  }
  for (const [id, numTokens, numComputed, taken] of moved) {
    listed.add(id);
    const row = rows.get(id);
    if (!row) continue; // it joined before the first tables
    row.numTokens = numTokens;
    row.numComputed = numComputed;
    for (const block of taken) {
      row.blocks.push(block);
      row.since.push(step);
    }
  }
  for (const row of rows.values()) {
    if (listed.has(row.id)) continue;
    row.numTokens++;
    row.numComputed++;
  }
}

/** Return a copy of a state, which later changes leave alone. */
function copyOf(rows) {
  return new Map([...rows].map(([id, row]) => [id, { ...row, blocks: [...row.blocks], since: [...row.since] }]));
}

/** Return the number of tokens in block `index` of a row that are computed. */
export function filled(row, index, blockSize) {
  return Math.min(Math.max(row.numComputed - index * blockSize, 0), blockSize);
}

export class Replay {
  constructor() {
    this.entries = []; // one for each step: step, time (ms since 1970), ms, numPrefill, numDecode, numUsed, ...
    this.rows = null; // the state after the last entry; null: not known until the next tables
    this.spans = new Spans();
    this.marks = new Map(); // block -> [[step, mark], ...]
    this.lastView = 0;
    this.numBlocks = 0;
  }

  /** Take a snapshot as the server sent it. */
  take(view) {
    if (view.view !== this.lastView + 1) this.rows = null; // a snapshot is missing, or the server is another one
    this.lastView = view.view;
    this.numBlocks = view.num_blocks;
    if (view.events.some((event) => event.kind === "restart")) this.#restart(view);
    const works = new Map(view.steps.map((step) => [step[0], step]));
    for (const change of view.changes) this.#change(change, view, works);
    if (view.changes.length === 0) for (const step of view.steps) this.#add({ change: null }, step, view, view.time);
    if (view.tables) this.#tables(view);
    else if (this.rows) this.#forget(view);
    this.spans.heal(view);
    this.#shorten();
  }

  #restart(view) {
    this.rows = null;
    this.spans.interrupt(1000 * view.time);
    this.marks.clear();
  }

  #change(change, view, works) {
    const [step, age, numWaiting, numUsed, numCached, , , , , , marks] = change;
    const at = view.time - age;
    for (const [block, mark] of marks) this.#mark(block, step, mark);
    if (this.rows) apply(this.rows, change);
    const last = this.entries.at(-1);
    const key = this.rows && (this.entries.length % KEY_EVERY === 0 || !last?.isKnown) ? copyOf(this.rows) : null;
    const facts = { change, key, isKnown: this.rows !== null, numWaiting, numUsed, numCached };
    this.#add(facts, works.get(step) ?? [step, 0, 0, 0], view, at);
    this.spans.take(change, 1000 * at, this.entries.at(-1).ms, this.rows);
  }

  #add(facts, [step, numPrefill, numDecode, ms], view, at) {
    const gauges = { numWaiting: view.num_waiting, numUsed: view.num_used_blocks, numCached: view.num_cached_blocks };
    const entry = { key: null, isKnown: false, ...gauges, ...facts, step, numPrefill, numDecode, ms, time: 1000 * at };
    entry.numRunning = this.rows ? this.rows.size : view.num_running;
    this.entries.push(entry);
  }

  /** Take over the tables of all sequences: the state after the last change. */
  #tables(view) {
    const earlier = this.rows;
    this.rows = new Map(view.tables.map((table) => [table[0], rowOf(table, null, earlier?.get(table[0]))]));
    for (const [block, mark] of view.marks) this.#mark(block, view.step, mark);
    const last = this.entries.at(-1);
    if (last && last.step === view.step) Object.assign(last, { key: copyOf(this.rows), isKnown: true });
    else this.#add({ change: null, key: copyOf(this.rows), isKnown: true }, [view.step, 0, 0, 0], view, view.time);
    this.spans.begin([...this.rows.values()], 1000 * view.time);
  }

  /** Drop the rows of sequences that no longer run; of a replica not every end is known. */
  #forget(view) {
    const running = new Set(view.running.map((row) => row[0]));
    for (const id of this.rows.keys()) if (!running.has(id)) this.rows.delete(id);
  }

  #mark(block, step, mark) {
    const known = this.marks.get(block) ?? [];
    if (known.at(-1)?.[1] !== mark) this.marks.set(block, [...known, [step, mark]].slice(-MAX_MARKS));
  }

  /** Return the mark of a block's hash as of a step, or null. */
  markOf(block, step) {
    return this.marks.get(block)?.findLast(([since]) => since <= step)?.[1] ?? null;
  }

  /** Return the state after entry `index`, or null if it is not known. Rows must not be changed. */
  stateAt(index) {
    if (index === this.entries.length - 1 && this.entries[index]?.isKnown) return this.rows;
    let first = index;
    while (first >= 0 && this.entries[first].isKnown && !this.entries[first].key) first--;
    if (first < 0 || !this.entries[first].isKnown) return null;
    const rows = copyOf(this.entries[first].key);
    for (let next = first + 1; next <= index; next++) apply(rows, this.entries[next].change);
    return rows;
  }

  #shorten() {
    const surplus = this.entries.length - MAX_ENTRIES;
    if (surplus < KEY_EVERY) return;
    let first = surplus;
    while (first < this.entries.length - 1 && !this.entries[first].key) first++;
    this.entries.splice(0, first);
    this.spans.forgetBefore(this.entries[0].time);
  }
}
