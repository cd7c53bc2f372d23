// Conversations: a tree of messages. Each edit or new answer is a branch beside the earlier one.

/** Return a new ID. crypto.randomUUID is missing on pages that came over plain HTTP from another machine. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Return an empty conversation. `leaf` is the ID of the last message shown. */
export function newConversation(system = "") {
  const now = Date.now();
  return { id: newId(), title: "", createdAt: now, updatedAt: now, system, leaf: null };
}

/**
 * Return a message after `parent`, the ID of another message or null; `number` is that of messages before it.
 *
 * Answers have more: thought, tokens, usage, requestId, request, explanation, leftOut and end (see answer.js).
 */
export function newMessage(conversation, parent, role, content = "", number = 0) {
  return { id: newId(), conversation: conversation.id, parent, role, content, createdAt: Date.now(), number };
}

/** Return the messages from the first to `leaf`, of a map by ID. */
export function pathTo(messages, leaf) {
  const path = [];
  for (let one = messages.get(leaf); one; one = messages.get(one.parent)) path.unshift(one);
  return path;
}

/** Return the messages with the same parent, the oldest first. */
export function siblings(messages, message) {
  return [...messages.values()].filter((one) => one.parent === message.parent).sort(byAge);
}

/** Return the ID of the last message below `id`, always along the newest branch. */
export function newestLeaf(messages, id) {
  for (;;) {
    const children = [...messages.values()].filter((one) => one.parent === id).sort(byAge);
    if (!children.length) return id;
    id = children.at(-1).id;
  }
}

// By number, since clocks are set back. Messages of earlier versions of the page have none: they are older.
const numberOf = ({ number = -1 }) => number;
const byAge = (one, other) =>
  numberOf(one) - numberOf(other) || one.createdAt - other.createdAt || (one.id < other.id ? -1 : 1);

/** Return whether an answer has no text, so that its question counts as not answered. */
export const isUnanswered = (message) => message.role === "assistant" && !message.content && !message.thought;

/**
 * Return the messages of a request: role and content, the system prompt first.
 *
 * A question without an answer, and its empty answer, are left out where others follow. The first `leftOut` messages
 * are left out, too.
 */
export function requestMessages(system, path, leftOut = 0) {
  const kept = [];
  path.forEach((message, index) => {
    if (index < leftOut) return;
    if (isUnanswered(message)) {
      if (kept.at(-1)?.role === "user") kept.pop();
    } else kept.push({ role: message.role, content: message.content });
  });
  if (system.trim()) kept.unshift({ role: "system", content: system });
  return kept;
}

/** Return a title from the first question. */
export function titleOf(text) {
  const line = text.trim().replace(/\s+/g, " ");
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line;
}

/** Return the heading of a day in the list: Today, Yesterday, a weekday, a month. */
export function dayOf(time, now = Date.now()) {
  const midnight = (at) => new Date(at).setHours(0, 0, 0, 0);
  const days = Math.round((midnight(now) - midnight(time)) / 86_400_000);
  if (days <= 0) return "Today";
  if (days === 1) return "Yesterday";
  if (days < 7) return new Date(time).toLocaleDateString("en", { weekday: "long" });
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}
