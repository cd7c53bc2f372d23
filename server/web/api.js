// Requests to this server: addresses, the API key, errors, and streams of events.
import { ofTab } from "./shell/storage.js";

const ROOT = new URL("../", import.meta.url); // holds for servers with a --root-path, too
const KEY = "key";
const SILENCE_SECONDS = 60; // without an event or a comment; the server sends a comment every 15 s

/** An error response, or no response: `status` is then 0. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, retryAfter = 0 } = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter; // seconds, 0 if the server names none
  }
}

/** Return the address of a path of this server, such as "v1/models". */
export const address = (path) => new URL(path.replace(/^\//, ""), ROOT).href;

/** Return the API key, empty if there is none. It is stored until the tab is closed. */
export const apiKey = () => ofTab.get(KEY) ?? "";

export function setApiKey(key) {
  ofTab.set(KEY, key.trim());
}

/** Return the headers that authenticate a request. */
export const headers = () => (apiKey() ? { authorization: `Bearer ${apiKey()}` } : {});

/** Send a request and return the successful response; raises ApiError, or AbortError if it was aborted. */
export async function request(path, { body, headers: more = {}, ...options } = {}) {
  const init = { ...options, headers: { ...headers(), ...more } };
  if (body !== undefined) {
    init.method ??= "POST";
    init.body = JSON.stringify(body);
    init.headers["content-type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(address(path), init);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** Send a request and return the JSON of its response; raises ApiError. */
export async function fetchJson(path, options) {
  const response = await request(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The response of the server is not JSON.", { status: response.status });
  }
}

async function errorOf(response) {
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  let message = `The server responded with status ${response.status}.`;
  let code = null;
  try {
    const { error } = await response.json();
    if (typeof error === "string") message = error;
    else ({ message, code } = error);
  } catch {
    // Not this server's form: a proxy between, perhaps.
  }
  return new ApiError(message, { status: response.status, code, retryAfter });
}

/**
 * Yield the payloads of a stream of server-sent events. Raises ApiError if the connection is lost, with the code
 * "silence" if nothing comes for a minute.
 */
export async function* events(response, silenceSeconds = SILENCE_SECONDS) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      let part;
      try {
        part = await within(silenceSeconds, reader.read());
      } catch (error) {
        if (error.name === "AbortError" || error instanceof ApiError) throw error;
        throw new ApiError("The connection to the server was lost.");
      }
      if (part.done) return;
      pending += part.value;
      const whole = pending.split("\n\n");
      pending = whole.pop();
      for (const one of whole)
        for (const line of one.split("\n")) if (line.startsWith("data: ")) yield line.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Return what a promise resolves to; raises ApiError if that takes too long. */
async function within(seconds, promise) {
  let timer;
  const silence = new Promise((_, fail) => {
    const error = new ApiError(`The server sent nothing for ${seconds} s.`, { code: "silence" });
    timer = setTimeout(() => fail(error), 1000 * seconds);
  });
  try {
    return await Promise.race([promise, silence]);
  } finally {
    clearTimeout(timer);
  }
}
