// What a step of the served model costs here, from the records of two requests.

const LONG = 256; // tokens of the long prompt

/**
 * Return { step_ms, token_ms } so that a step of n tokens takes step_ms + n token_ms; raises ApiError.
 *
 * The first token of a long prompt takes one step (or a few), each token of its answer another. The prompt is random,
 * so that nothing of it is cached.
 */
export async function measureCost({ fetchJson, signal }) {
  const { data } = await fetchJson("v1/models", { signal });
  const prompt = Array.from({ length: LONG }, () => 100 + Math.floor(Math.random() * 100));
  const body = { model: data[0].id, prompt, max_tokens: 17, seed: 1, ignore_eos: true, explain: true };
  const { explanation } = await fetchJson("v1/completions", { body, signal });
  const at = (name) => explanation.timeline.find(({ event }) => event === name).at_ms;
  const end = explanation.timeline.at(-1).at_ms;
  const promptMs = at("first token") - at("joined");
  const tokenStepMs = (end - at("first token")) / (explanation.choices[0].tokens - 1);
  const tokenMs = Math.max((promptMs - tokenStepMs) / (LONG - 1), 0.001);
  return { step_ms: rounded(Math.max(tokenStepMs - tokenMs, 0.1)), token_ms: rounded(tokenMs) };
}

const rounded = (ms) => Number(ms.toPrecision(3));
