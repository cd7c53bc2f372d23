// Answers of a server that were recorded, for a copy of the lessons that has no server behind it.
import { address, ApiError } from "../api.js";
import { hashOf } from "./fnv.js";

/** Return JSON without spaces, with the keys of objects in order. */
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const entries = Object.keys(value).sort();
  return `{${entries.map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join(",")}}`;
}

/** Return the name of the file with the answer to a request, recorded while `beside` other requests ran. */
export function nameOf(path, body = null, beside = 0) {
  const text = `${path} ${canonical(body)}${beside ? ` beside ${beside}` : ""}`;
  return `${hashOf(new TextEncoder().encode(text))}.json`;
}

/** Return the recorded answer to a request, as `fetchJson` of api.js does; raises ApiError if there is none. */
export async function fetchRecorded(path, { body = null, beside = 0, signal } = {}) {
  const answer = await file(nameOf(path, body, beside), signal);
  if (answer.error) throw new ApiError(answer.error.message);
  return answer.rest ? { ...(await file(answer.rest, signal)), ...answer.part } : answer;
}

async function file(name, signal) {
  const response = await fetch(address(`recorded/${name}`), { signal });
  if (response.ok) return response.json();
  throw new ApiError("This was not recorded, and no server is behind this copy of the lessons. Start one to try it.");
}
