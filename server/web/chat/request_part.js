// The request of an answer, to send it again from elsewhere: as JSON, with curl, in Python.
import { apiKey } from "../api.js";
import { element } from "../nodes.js";
import { codeBlock, highlight } from "./code_block.js";

const KEY = "CARAVAN_API_KEY"; // an environment variable: the key itself is not shown

/** Return the node; `url` is the address of the endpoint, `messages` are those that were sent. */
export function requestPart(message, { messages, url }) {
  const body = { ...message.request, messages };
  const node = element(
    "div",
    {},
    element("p", { class: "meta" }, "The seed makes it repeatable: the same request has the same answer."),
    codeBlock(JSON.stringify(body, null, 2), "json"),
    codeBlock(curl(url, body), "bash"),
    codeBlock(python(url, body), "python"),
  );
  highlight(node);
  return node;
}

/** Return a curl command; the body is in single quotes. */
export function curl(url, body) {
  const key = apiKey() ? ` \\\n  -H "authorization: Bearer $${KEY}"` : "";
  const quoted = JSON.stringify(body, null, 1).replaceAll("'", "'\\''");
  return `curl -N ${url}${key} \\\n  -H 'content-type: application/json' \\\n  -d '${quoted}'`;
}

/** Return a Python program for the client library of OpenAI. */
export function python(url, { explain, top_k: topK, min_p: minP, ...body }) {
  const extra = JSON.parse(JSON.stringify({ explain, top_k: topK, min_p: minP })); // without those that are undefined
  const fields = Object.entries(body).map(([name, value]) => `    ${name}=${literal(value)},`);
  if (Object.keys(extra).length) fields.push(`    extra_body=${literal(extra)},`);
  const key = apiKey() ? `os.environ["${KEY}"]` : '"none"';
  return [
    ...(apiKey() ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(url.replace(/\/chat\/completions$/, ""))}, api_key=${key})`,
    "stream = client.chat.completions.create(",
    ...fields,
    ")",
    "for chunk in stream:",
    "    if chunk.choices:",
    '        print(chunk.choices[0].delta.content or "", end="")',
  ].join("\n");
}

/** Return a JSON value as Python writes it. */
function literal(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    const fields = Object.entries(value).map(([name, one]) => `${literal(name)}: ${literal(one)}`);
    return `{${fields.join(", ")}}`;
  }
  return JSON.stringify(value); // numbers, and texts with escapes that Python has, too
}
