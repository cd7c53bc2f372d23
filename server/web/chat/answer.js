// An answer from the first try to its end: what is waited for, tried again, asked for, and how it ended.
//
// `end` of an answer is {kind, text}: "stop" is complete, "limit" is cut at the answer limit, "context" at the end of
// the context, "stopped" by the reader, "closed" with the page, "lost" with the connection, "silence" when nothing came
// for a minute, "error" otherwise.
import { askForKey } from "../shell/server_state.js";
import { readAnswer } from "./answer_stream.js";
import { newId } from "./conversation.js";

const MAX_RESUMED = 3; // times that an answer goes on by itself after the connection was lost
const RETRY_SECONDS = 3;

/**
 * Let the server write `message`, and set its `end`.
 *
 * `bodyOf(isContinued)` returns a promise of the request. `report(text)` shows what is waited for; `onText` is called
 * at each event.
 */
export async function write(message, { bodyOf, isContinued, numPromptTokens, server, signal, report, onText }) {
  message.tokens ??= [];
  message.end = { kind: "closed", text: "" }; // holds if the page is closed meanwhile
  const watchProgress = await progressWatcher();
  const began = performance.now();
  let firstAt = 0;
  for (let numResumed = 0; ; ) {
    const before = message.content;
    message.requestId = newId();
    const progress = watchProgress(message.requestId, numPromptTokens, server, report);
    try {
      const body = await bodyOf(isContinued);
      const reason = await readAnswer(body, message, {
        signal,
        onEvent: (choice) => {
          if (choice) progress.beat();
          if (!firstAt && choice) firstAt = performance.now();
          onText();
        },
      });
      message.end = endOf(reason, body.max_completion_tokens, message);
    } catch (error) {
      progress.stop();
      if (signal.aborted) message.end = { kind: "stopped", text: "" };
      else if (error.status === undefined) message.end = { kind: "error", text: String(error) }; // not an API error
      else if (error.code === "silence") message.end = { kind: "silence", text: error.message };
      else if (error.status === 0 && (message.content || message.thought) && numResumed++ >= MAX_RESUMED)
        message.end = { kind: "lost", text: error.message };
      else if (await canRetry(error, message.content !== before, { server, signal, report })) {
        isContinued ||= message.content !== "";
        if (!isContinued) Object.assign(message, { thought: "", tokens: [] });
        continue;
      } else if (signal.aborted) message.end = { kind: "stopped", text: "" };
      else message.end = { kind: "error", text: error.message, code: error.code };
    } finally {
      progress.stop();
      report("");
    }
    if (firstAt) message.facts = factsOf(message, firstAt - began, performance.now() - firstAt);
    return;
  }
}

/** Return `watchProgress`, which is loaded with the first answer; without it nothing is said while an answer waits. */
function progressWatcher() {
  const nothing = () => ({ beat() {}, stop() {} });
  return import("./answer_progress.js").then(({ watchProgress }) => watchProgress, () => nothing);
}

function endOf(reason, maxTokens, message) {
  if (reason !== "length") return { kind: "stop", text: "" };
  if (maxTokens) return { kind: "limit", text: String(message.usage?.completion_tokens ?? maxTokens) };
  return { kind: "context", text: "" };
}

/** Return the line below an answer, such as "124 tokens, 41.3 tokens/s; first token after 220 ms". */
function factsOf(message, firstMs, restMs) {
  const count = message.usage?.completion_tokens ?? message.tokens.length; // of the last request
  const all = Math.max(count, message.tokens.length); // of the requests before it, too
  const tokens = all === 1 ? "1 token" : `${all} tokens`;
  const rate = count > 1 && restMs > 0 ? `, ${((1000 * (count - 1)) / restMs).toFixed(1)} tokens/s` : "";
  const first = firstMs < 1000 ? `${Math.round(firstMs)} ms` : `${(firstMs / 1000).toFixed(1)} s`;
  return `${tokens}${rate}; first token after ${first}`;
}

/** Wait until a failed request may be sent again; return false if it should not be, or the reader stopped it. */
async function canRetry(error, hasNewText, { server, signal, report }) {
  if (error.status === 401) return askForKey();
  if (error.status === 429 && !hasNewText)
    return countedDown("The server is busy", error.retryAfter || RETRY_SECONDS, { signal, report });
  if (error.status === 503 && !hasNewText) {
    const isDraining = error.message.includes("shutting down");
    await server.check();
    const text = isDraining ? "The server is shutting down" : server.text();
    if (isDraining) return countedDown(text, RETRY_SECONDS, { signal, report });
    if (server.current() === "ready") return countedDown("The engine was not ready", RETRY_SECONDS, { signal, report });
    return untilReady(`${text}. Your question is sent when it is ready.`, { server, signal, report });
  }
  if (error.status === 0) {
    const text = navigator.onLine ? "No server answers" : "This device is offline";
    for (;;) {
      if (!(await countedDown(text, RETRY_SECONDS, { signal, report }))) return false;
      if ((await server.check()) === "ready") return true;
    }
  }
  return false;
}

/** Count down the seconds until the next try; return false if the reader stopped it. */
async function countedDown(text, seconds, { signal, report }) {
  for (let left = seconds; left > 0; left--) {
    report(`${text}. Trying again in ${left} s.`);
    if (!(await slept(1000, signal))) return false;
  }
  return !signal.aborted;
}

async function untilReady(text, { server, signal, report }) {
  report(text);
  while ((await server.check()) !== "ready") if (!(await slept(1000, signal))) return false;
  return !signal.aborted;
}

/** Wait; return false as soon as the signal is aborted. */
function slept(ms, signal) {
  return new Promise((done) => {
    const timer = setTimeout(() => done(!signal.aborted), ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), done(false)), { once: true });
    if (signal.aborted) done(false);
  });
}
