// One streamed response, read into an answer.
import { ApiError, events, request } from "../api.js";

const entry = ({ token, logprob }) => ({ token, logprob });

/**
 * Send a chat request and add what comes to `message`: content, thought, tokens, usage, explanation.
 *
 * `onEvent` is called after each event. Returns the finish reason. Raises ApiError, and AbortError if `signal` says so.
 */
export async function readAnswer(body, message, { signal, onEvent }) {
  const headers = { "x-request-id": message.requestId };
  const response = await request("v1/chat/completions", { body, headers, signal });
  let reason = null;
  for await (const payload of events(response)) {
    if (payload === "[DONE]") return reason ?? "stop";
    const chunk = JSON.parse(payload);
    if (chunk.error) throw new ApiError(chunk.error.message, { status: 500, code: chunk.error.code });
    message.usage = chunk.usage ?? message.usage;
    message.explanation = chunk.explanation ?? message.explanation;
    message.warnings = chunk.warnings ?? message.warnings;
    const choice = chunk.choices?.[0];
    if (choice) {
      const thought = choice.delta.reasoning_content ?? choice.delta.reasoning;
      if (thought) message.thought = (message.thought ?? "") + thought;
      message.content += choice.delta.content ?? "";
      for (const token of choice.logprobs?.content ?? [])
        message.tokens.push({ ...entry(token), top: token.top_logprobs.map(entry) });
      reason = choice.finish_reason ?? reason;
    }
    onEvent(choice);
  }
  if (signal.aborted) throw new DOMException("Stopped", "AbortError");
  throw new ApiError("The connection to the server was lost.");
}
