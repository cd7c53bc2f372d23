// One streamed completion, token by token with the times at which they come.
import { ApiError, events, request } from "../api.js";
import { hashOfTokens } from "./fnv.js";

/**
 * Stream a completion and return { tokenIds, text, times, hash }: `times` are milliseconds since the request.
 *
 * `onToken` is called with the number of tokens so far. Raises ApiError.
 */
export async function streamedRun(body, { signal, onToken }) {
  const began = performance.now();
  const run = { tokenIds: [], text: "", times: [], hash: "" };
  const response = await request("v1/completions", {
    body: { ...body, stream: true, return_token_ids: true },
    signal,
  });
  for await (const payload of events(response)) {
    if (payload === "[DONE]") {
      run.hash = hashOfTokens(run.tokenIds);
      return run;
    }
    const chunk = JSON.parse(payload);
    if (chunk.error) throw new ApiError(chunk.error.message, { status: 500, code: chunk.error.code });
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    run.text += choice.text ?? "";
    for (const tokenId of choice.token_ids ?? []) {
      run.tokenIds.push(tokenId);
      run.times.push(performance.now() - began);
      onToken?.(run.tokenIds.length);
    }
  }
  throw new ApiError("The stream ended before its answer was complete.");
}

/** Return the longest time between two tokens, in milliseconds. */
export const longestPause = ({ times }) =>
  times.slice(1).reduce((most, at, index) => Math.max(most, at - times[index]), 0);
