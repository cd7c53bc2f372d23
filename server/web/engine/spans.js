// Spans: what each request did when - queued, prompt, answer, preempted - for the bars of the time line.

const MAX_WAITING_SENT = 100; // of a snapshot; of longer queues not every request is in it

/** Return the phase of a running sequence. */
export function phaseOf(row) {
  return row.numTokens > row.numPrompt && row.numComputed >= row.numTokens - 1 ? "answer" : "prompt";
}

export class Spans {
  constructor() {
    // id -> { id, parts: [{ kind, from, to }], end }; times in ms, null: still going on
    this.byRequest = new Map();
  }

  /** Take the change of a step that ended at `at` and took `ms`; `rows` are those after it, or null. */
  take(change, at, ms, rows) {
    const [, , , , , queued, joined, , ended, preempted] = change;
    for (const id of queued) this.#part(id, "queued", at - ms);
    for (const table of joined) if (this.#kind(table[0]) !== "answer") this.#part(table[0], "prompt", at - ms);
    for (const id of preempted) this.#part(id, "preempted", at);
    for (const id of ended) this.end(id, at);
    if (!rows) return;
    for (const row of rows.values()) {
      const kind = phaseOf(row);
      if (this.#kind(row.id) !== kind) this.#part(row.id, kind, at);
    }
  }

  /** Show the requests that ran before anything of them was known. */
  begin(rows, at) {
    for (const row of rows) if (!this.#isOpen(row.id)) this.#part(row.id, phaseOf(row), at);
  }

  /** End the request at a time, if it has not ended. */
  end(id, at) {
    const span = this.byRequest.get(id);
    const last = span?.parts.at(-1);
    if (last && last.to === null) last.to = at;
    if (span) span.end ??= at;
  }

  /** End what a snapshot shows as gone: a step may have been missed, or started and ended the request. */
  heal(view) {
    const at = 1000 * view.time;
    const there = new Set([...view.running, ...view.waiting].map((row) => row[0]));
    const isWhole = view.num_waiting <= MAX_WAITING_SENT;
    for (const span of this.byRequest.values()) {
      const kind = span.parts.at(-1).kind;
      const isSure = isWhole || kind === "prompt" || kind === "answer";
      if (span.end === null && isSure && !there.has(span.id)) this.end(span.id, at);
    }
    for (const row of view.waiting) if (!this.#isOpen(row[0])) this.#part(row[0], "queued", at);
  }

  /** The engine was replaced: all requests are queued again. */
  interrupt(at) {
    for (const span of this.byRequest.values()) if (span.end === null) this.#part(span.id, "queued", at);
  }

  /** Return the spans that touch a range of time, those that began first first. */
  between(from, to) {
    return [...this.byRequest.values()].filter(
      (span) => span.parts[0].from <= to && (span.end === null || span.end >= from),
    );
  }

  forgetBefore(time) {
    for (const [id, span] of this.byRequest) if (span.end !== null && span.end < time) this.byRequest.delete(id);
  }

  #kind(id) {
    const last = this.byRequest.get(id)?.parts.at(-1);
    return last && last.to === null ? last.kind : null;
  }

  #isOpen(id) {
    return this.byRequest.get(id)?.end === null;
  }

  #part(id, kind, from) {
    let span = this.byRequest.get(id);
    if (!span || span.end !== null) this.byRequest.set(id, (span = { id, parts: [], end: null }));
    const last = span.parts.at(-1);
    if (last && last.to === null) {
      if (last.kind === kind) return;
      last.to = Math.max(from, last.from);
    }
    span.parts.push({ kind, from: Math.max(from, last?.to ?? from), to: null });
  }
}
