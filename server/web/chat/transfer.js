// Conversations as a JSON file: export, and import of what may come from anywhere.
import { newId } from "./conversation.js";

const FORMAT = "caravan-conversations";
const VERSION = 1;
const MAX_BYTES = 50 * 2 ** 20;
const ROLES = ["user", "assistant"];
const LOGPROBS = [-1e9, 0.001]; // of a probability of 1 after rounding, too
const MAX_TIME = 8.64e15; // milliseconds since 1970: the last day of JavaScript's calendar
const END_KINDS = ["stop", "limit", "context", "stopped", "closed", "lost", "silence", "error"];

/** Return the text of a file with conversations, each as {conversation, messages}. */
export function exported(all) {
  const conversations = all.map(({ conversation, messages }) => ({ ...conversation, messages }));
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1);
}

/** Let the browser save a text as a file. */
export function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/**
 * Return the conversations in the text of such a file, with new IDs.
 *
 * Only known fields of the right types are taken. Raises an Error that says what is wrong.
 */
export function imported(text) {
  if (text.length > MAX_BYTES) throw new Error("The file is larger than 50 MiB.");
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("The file is not JSON.");
  }
  if (file?.format !== FORMAT || file.version !== VERSION || !Array.isArray(file.conversations))
    throw new Error("The file is no export of conversations from this page.");
  return file.conversations.map(conversationFrom);
}

function conversationFrom(given, index) {
  const where = `Conversation ${index + 1}`;
  if (!Array.isArray(given?.messages)) throw new Error(`${where} has no messages.`);
  const id = newId();
  const ids = new Map(); // new by old
  for (const message of given.messages) {
    if (typeof message?.id !== "string" || ids.has(message.id))
      throw new Error(`${where}: a message has no ID of its own.`);
    ids.set(message.id, newId());
  }
  const messages = given.messages.map((message) => {
    if (!ROLES.includes(message.role) || typeof message.content !== "string")
      throw new Error(`${where}: a message has no role or no content.`);
    if (message.parent !== null && !ids.has(message.parent))
      throw new Error(`${where}: the message before another is missing.`);
    const parent = message.parent === null ? null : ids.get(message.parent);
    const { role, content } = message;
    return { id: ids.get(message.id), conversation: id, parent, role, content, ...factsOf(message, ids.size, where) };
  });
  if (hasCycle(messages)) throw new Error(`${where}: messages follow each other in a circle.`);
  return {
    conversation: {
      id,
      title: textOf(given.title),
      system: textOf(given.system),
      createdAt: timeOf(given, "createdAt", where),
      updatedAt: timeOf(given, "updatedAt", where),
      leaf: ids.get(given.leaf) ?? messages.at(-1)?.id ?? null,
    },
    messages,
  };
}

const textOf = (value) => (typeof value === "string" ? value : "");
const timeOf = (given, name, where) => numberIn(given, name, [0, MAX_TIME], where) ?? Date.now();
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** Return a number of an object, undefined if it has none. Raises an Error that names it if it is out of bounds. */
function numberIn(object, name, [low, high], where) {
  const value = object?.[name];
  if (typeof value !== "number") return undefined;
  if (value >= low && value <= high) return value;
  throw new Error(`${where}: ${name} is ${value}; it must be from ${low} to ${high}.`);
}

/** Return the same for a whole number. */
function countIn(object, name, high, where) {
  const value = numberIn(object, name, [0, high], where);
  if (value === undefined || Number.isInteger(value)) return value;
  throw new Error(`${where}: ${name} is ${value}; it must be a whole number.`);
}

/** Return the known fields of a message; `numMessages` is that of its conversation. */
function factsOf(message, numMessages, where) {
  const facts = { createdAt: timeOf(message, "createdAt", where) };
  const number = countIn(message, "number", numMessages, where);
  const leftOut = countIn(message, "leftOut", numMessages, where);
  const totalTokens = countIn(message.usage, "total_tokens", Number.MAX_SAFE_INTEGER, where);
  if (number !== undefined) facts.number = number;
  if (leftOut) facts.leftOut = leftOut;
  if (totalTokens !== undefined) facts.usage = { total_tokens: totalTokens };
  if (typeof message.thought === "string") facts.thought = message.thought;
  if (END_KINDS.includes(message.end?.kind)) facts.end = { kind: message.end.kind, text: textOf(message.end.text) };
  if (typeof message.facts === "string") facts.facts = message.facts;
  if (isObject(message.request)) facts.request = message.request;
  const isOne = (entry) => isEntry(entry, where);
  const isToken = (entry) => isOne(entry) && Array.isArray(entry.top) && entry.top.every(isOne);
  if (Array.isArray(message.tokens) && message.tokens.every(isToken)) facts.tokens = message.tokens;
  return facts;
}

const isEntry = (entry, where) =>
  isObject(entry) && typeof entry.token === "string" && numberIn(entry, "logprob", LOGPROBS, where) !== undefined;

function hasCycle(messages) {
  const parents = new Map(messages.map((one) => [one.id, one.parent]));
  const good = new Set([null]);
  for (const { id } of messages) {
    const seen = new Set();
    let one = id;
    while (!good.has(one)) {
      if (seen.has(one)) return true;
      seen.add(one);
      one = parents.get(one);
    }
    for (const each of seen) good.add(each);
  }
  return false;
}
