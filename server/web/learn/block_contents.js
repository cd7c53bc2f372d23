// What lies in the blocks of a simulation: words, sharing, waste.

/** Return the words of every block of a request: those of its prompt, then the tokens that it generates, numbered. */
export function wordsOf({ words, maxTokens }, blockSize) {
  const all = [...words, ...Array.from({ length: maxTokens }, (_, index) => `new ${index + 1}`)];
  return Array.from({ length: Math.ceil(all.length / blockSize) }, (_, index) =>
    all.slice(index * blockSize, (index + 1) * blockSize),
  );
}

/**
 * Return the blocks in use in a step: a map from the number of a block to { requests, words, room }.
 *
 * `words` are those that are computed at the end of the step; `room` is how many more fit.
 */
export function blocksIn(step, requests, blockSize) {
  const blocks = new Map();
  for (const { request, start, num_tokens: count, blocks: table } of step.rows) {
    const words = wordsOf(requests[request], blockSize);
    table.forEach((block, index) => {
      const filled = Math.min(Math.max(start + count - index * blockSize, 0), blockSize);
      const known = blocks.get(block);
      const entry = known ?? { requests: [], words: [], room: blockSize };
      entry.requests.push(request);
      if (blockSize - filled < entry.room)
        Object.assign(entry, { words: words[index].slice(0, filled), room: blockSize - filled });
      blocks.set(block, entry);
    });
  }
  return blocks;
}

/** Return the index of the step in which the block tables have the most entries together. */
export function fullestStep(steps) {
  const entries = steps.map(({ rows }) => rows.reduce((sum, { blocks }) => sum + blocks.length, 0));
  return entries.indexOf(Math.max(...entries));
}

/** Return what a block size costs in a step: slots without a token, entries of the tables, and blocks in use. */
export function costOf(step, requests, blockSize) {
  const blocks = [...blocksIn(step, requests, blockSize).values()];
  return {
    blocks: blocks.length,
    empty: blocks.reduce((sum, { room }) => sum + room, 0),
    entries: step.rows.reduce((sum, row) => sum + row.blocks.length, 0),
    shared: blocks.filter((one) => one.requests.length > 1).length,
  };
}

/**
 * Return the tree of the prompts' full blocks: nodes { hash, words, requests, children }.
 *
 * Each hash is made of the words of its block and the hash before it, so it stands for the whole text up to there.
 */
export function prefixTree(hashes, requests, blockSize) {
  const roots = [];
  hashes.forEach((chain, request) => {
    const words = wordsOf(requests[request], blockSize);
    let level = roots;
    chain.forEach((hash, index) => {
      let node = level.find((one) => one.hash === hash);
      if (!node) level.push((node = { hash, words: words[index], requests: [], children: [] }));
      node.requests.push(request);
      level = node.children;
    });
  });
  return roots;
}
