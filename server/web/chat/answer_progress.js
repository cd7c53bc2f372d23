// What an answer waits for: its turn, its prompt, a new engine. It is asked of the server while nothing comes.
import { fetchJson } from "../api.js";
import { counted } from "../nodes.js";

const PERIOD_MS = 500; // between two questions
const SILENCE_MS = { before: 400, within: 2000 }; // before the first token, and within the answer

const ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"];

/** Call `report` with a text while the request is silent, with "" when it goes on. Call `beat` at each event. */
export function watchProgress(requestId, numPromptTokens, server, report) {
  let lastAt = performance.now();
  let hasText = false;
  let isAsking = false;
  let isReported = false;
  let isStopped = false;
  const timer = setInterval(look, PERIOD_MS);

  async function look() {
    if (isAsking || performance.now() - lastAt < (hasText ? SILENCE_MS.within : SILENCE_MS.before)) return;
    isAsking = true;
    const askedAt = lastAt;
    const text = await textNow(requestId, numPromptTokens, hasText, server);
    isAsking = false;
    if (isStopped || lastAt !== askedAt || !text) return;
    isReported = true;
    report(text);
  }

  return {
    beat() {
      lastAt = performance.now();
      if (isReported || !hasText) report("");
      hasText = true;
      isReported = false;
    },
    stop() {
      isStopped = true;
      clearInterval(timer);
    },
  };
}

async function textNow(requestId, numPromptTokens, hasText, server) {
  try {
    const { timeline } = await fetchJson(`v1/requests/${requestId}/explain`);
    await server.check();
    if (server.current() === "replaced") return "The engine is being replaced. Your answer goes on.";
    return hasText ? "" : progressText(timeline, numPromptTokens);
  } catch (error) {
    return error.status === 404 ? "Waiting for the server" : ""; // the stream itself reports other failures
  }
}

/** Return in words what the last events of a request say. `numPromptTokens` is null if it is not known. */
export function progressText(timeline, numPromptTokens) {
  const indexOf = (event) => timeline.findLastIndex((one) => one.event === event);
  if (indexOf("engine replaced") > indexOf("joined")) return "The engine was replaced. Your answer goes on.";
  if (indexOf("joined") >= 0) {
    const tokens = timeline[indexOf("computed")]?.computed_tokens ?? timeline[indexOf("joined")].cached_tokens ?? 0;
    const all = numPromptTokens === null ? "tokens so far" : `of ${counted(numPromptTokens)} tokens`;
    return `Reading the prompt: ${counted(Math.min(tokens, numPromptTokens ?? tokens))} ${all}`;
  }
  const queued = timeline[indexOf("queued")];
  if (!queued) return "Waiting for the server";
  if (!queued.behind) return "Waiting for the next step";
  const place = ORDINALS[queued.behind] ?? `number ${queued.behind + 1}`;
  const seconds = Math.ceil((timeline[indexOf("admitted")]?.predicted_wait_ms ?? 0) / 1000);
  return `Queued: ${place} in the queue${seconds ? `, about ${seconds} s` : ""}`;
}
