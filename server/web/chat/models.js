// The served models: names, context, quantization, and the sampling that their makers advise.
import { fetchJson } from "../api.js";
import { counted } from "../nodes.js";

/**
 * Return the served models, the default one first.
 *
 * Each has name, maxModelLen (tokens), state, quantization, size (such as "135M") and defaults (texts by name).
 * Raises ApiError.
 */
export async function servedModels() {
  const { data } = await fetchJson("v1/models");
  return Promise.all(data.map(described));
}

async function described({ id, max_model_len: maxModelLen, state }) {
  let details = {};
  let parameters = "";
  try {
    ({ details, parameters } = await fetchJson("api/show", { body: { model: id } }));
  } catch {
    // The name and the context are enough to chat.
  }
  const lines = parameters.split("\n").map((line) => line.split(" "));
  return {
    name: id,
    maxModelLen,
    state,
    quantization: (details.quantization_level ?? "").split(":")[0], // the name, without what it means
    size: details.parameter_size ?? "",
    defaults: Object.fromEntries(lines.filter((line) => line.length === 2)),
  };
}

/** Return what the chip shows, such as "smollm2 · int4 · 8,192 tokens". */
export function chipText(model) {
  return [model.name, model.quantization, `${counted(model.maxModelLen)} tokens`].filter(Boolean).join(" · ");
}

/** Return how many tokens a conversation has as a prompt; raises ApiError. */
export async function countTokens(model, messages, signal) {
  const { count } = await fetchJson("tokenize", { body: { model, messages }, signal });
  return count;
}
