// From logits to the tokens that may be drawn, in the order of the server: temperature, then top_k, top_p of the rest,
// min_p.

/** Return the probabilities [vocab_size] of logits at a temperature above 0. */
export function probabilities(logits, temperature) {
  let best = -Infinity;
  for (const one of logits) if (one > best) best = one;
  const weights = Float64Array.from(logits, (one) => Math.exp((one - best) / temperature));
  const total = weights.reduce((sum, one) => sum + one, 0);
  return weights.map((one) => one / total);
}

/**
 * Return the probabilities after truncation, 0 for tokens that are left out; what is kept sums up to one.
 *
 * top_k 0, top_p 1 and min_p 0 leave out nothing. Tokens of equal probability stay or go together.
 */
export function truncated(weights, { topK, topP, minP }) {
  const order = Float64Array.from(weights).sort().reverse();
  let threshold = minP * order[0];
  const kept = topK > 0 && topK < order.length ? order.filter((one) => one >= order[topK - 1]) : order;
  if (kept.length < order.length) threshold = Math.max(threshold, kept.at(-1));
  if (topP < 1) {
    const mass = topP * kept.reduce((sum, one) => sum + one, 0);
    let sum = 0;
    let place = 0;
    while (place < kept.length - 1 && (sum += kept[place]) < mass) place++;
    threshold = Math.max(threshold, kept[place]);
  }
  const left = weights.map((one) => (one >= threshold ? one : 0));
  const total = left.reduce((sum, one) => sum + one, 0);
  return left.map((one) => one / total);
}
