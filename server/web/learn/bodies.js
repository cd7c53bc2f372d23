// The bodies of the requests that lessons send. docs/learn_site.py makes the same ones, so that their answers can be
// recorded.
import { EXAMPLES } from "./examples.js";

/** Return the body that cuts a line into tokens. */
export const tokenizeBody = (line) => ({ prompt: line, add_special_tokens: false, return_pieces: true });

/** Return how many blocks a pool of `pool` tokens has. */
export const numBlocksOf = (pool, blockSize) => Math.max(Math.floor(pool / blockSize), 1);

/** Return the simulation of prompts, lists of token ids, in a pool of `pool` tokens. */
export function pagingBody(prompts, { blockSize, pool }) {
  const { max_tokens: maxTokens, max_num_seqs: maxNumSeqs, max_batch_tokens: maxBatchTokens } = EXAMPLES.paging;
  return {
    requests: prompts.map((prompt) => ({ prompt, max_tokens: maxTokens })),
    num_blocks: numBlocksOf(pool, blockSize),
    block_size: blockSize,
    max_num_seqs: maxNumSeqs,
    max_batch_tokens: maxBatchTokens,
  };
}

/** Return the simulation of the example's requests; no two of them begin with the same token. */
export function batchingBody(chosen, cost, waitsForAll) {
  return {
    requests: EXAMPLES.batching.requests.map(([length, maxTokens], index) => ({
      prompt: Array.from({ length }, (_, place) => 1000 * index + place),
      max_tokens: maxTokens,
      step: chosen.every * index,
    })),
    num_blocks: 128,
    max_num_seqs: chosen.max_num_seqs,
    max_batch_tokens: chosen.max_batch_tokens,
    max_inter_token_ms: chosen.max_inter_token_ms,
    step_ms: cost.step_ms,
    token_ms: cost.token_ms,
    waits_for_all: waitsForAll,
  };
}

/** Return a request with a seed after the tokens of a trace, and those beside it; `sampling` has more of its fields. */
export function seedBodies({ model, tokens }, sampling, seed) {
  const { max_tokens: maxTokens, others } = EXAMPLES.same_seed;
  const ids = tokens.map(({ id }) => id);
  const common = { model, ignore_eos: true, ...sampling };
  const company = Array.from({ length: others }, (_, index) => [...ids, ids[index % ids.length]]);
  return {
    mine: { ...common, prompt: ids, seed, max_tokens: maxTokens, return_token_ids: true, explain: true },
    company: { ...common, prompt: company, seed: 1, max_tokens: 4 * maxTokens },
  };
}

/** Return the request of a scenario of "Why was it slow?", and those that run beside it, null for none. */
export function slowBodies(model, text, { repeats, others }) {
  const { max_tokens: maxTokens } = EXAMPLES.slow;
  const body = (prompt) => ({ model, prompt, max_tokens: maxTokens, seed: 1, ignore_eos: true });
  const prompt = Array.from({ length: repeats }, () => text).join(" ");
  const mine = { ...body(prompt), explain: true, return_token_ids: true };
  const company = Array.from({ length: others }, (_, index) => `${index + 1} ${text}`);
  return { mine, company: others ? { ...body(company), max_tokens: 2 * maxTokens } : null };
}
