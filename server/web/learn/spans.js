// How the time of each request of a simulation was spent, and what that means for its reader.

/**
 * Return for each request its spans { kind, from, to } in milliseconds, and the times of its tokens.
 *
 * Kinds are queue, prompt, answer, idle (in the batch, not computed) and lost (preempted, waits again). `arrivals` has
 * the step before which each request arrives.
 */
export function spansOf({ steps, requests }, arrivals) {
  return requests.map(({ joined, finished }, request) => {
    const spans = [];
    const tokens = [];
    let arrived = null;
    for (const { step, start_ms: from, end_ms: to, rows } of steps) {
      if (step < arrivals[request] || step > finished) continue;
      arrived ??= from;
      const row = rows.find((one) => one.request === request);
      const kind = row ? (row.is_prompt ? "prompt" : "answer") : step < joined ? "queue" : "idle";
      const last = spans.at(-1);
      if (last?.kind === kind) last.to = to;
      else spans.push({ kind, from, to });
      if (row?.num_new_tokens) tokens.push(to);
    }
    return { spans: withLosses(spans, steps, request), tokens, arrived };
  });
}

/** Return the spans in which the request waits after a preemption as lost ones. */
function withLosses(spans, steps, request) {
  const losses = steps.filter(({ preempted }) => preempted.includes(request)).map(({ start_ms: start }) => start);
  return spans.map((span) =>
    span.kind === "idle" && losses.some((at) => at >= span.from && at < span.to) ? { ...span, kind: "lost" } : span,
  );
}

/** Return what a simulation means: its length, tokens a second, times to the first token, and the longest pause. */
export function summaryOf({ steps }, lives) {
  const total = steps.at(-1).end_ms;
  const count = lives.reduce((sum, { tokens }) => sum + tokens.length, 0);
  const firsts = lives.map(({ tokens, arrived }) => tokens[0] - arrived);
  const pauses = lives.flatMap(({ tokens }) => tokens.slice(1).map((at, index) => at - tokens[index]));
  return {
    steps: steps.length,
    total,
    tokensASecond: (1000 * count) / total,
    meanFirst: firsts.reduce((sum, one) => sum + one, 0) / firsts.length,
    longestPause: Math.max(0, ...pauses),
  };
}
