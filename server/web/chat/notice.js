// Notices inside messages: how an answer ended, what it waits for, and one action.
import { button, counted, element } from "../nodes.js";

/**
 * Return the notice below an answer, or null if there is nothing to say.
 *
 * `act(name)` does "goOn", "regenerate" or "shorten". `maxModelLen` is the model's context in tokens.
 */
export function noticeOf(message, { act, maxModelLen, isLast }) {
  const { end } = message;
  const parts = [];
  if (message.leftOut) {
    const number = message.leftOut;
    const what = number === 1 ? "The first message was" : `The first ${counted(number)} messages were`;
    parts.push(notice("info", `${what} left out: the conversation is longer than the model's context.`));
  }
  if (end && end.kind !== "stop") parts.push(endNotice(message, { act, maxModelLen, isLast }));
  for (const warning of message.warnings ?? []) parts.push(notice("info", `The server remarks: ${warning}`));
  return parts;
}

function endNotice({ end, content }, { act, maxModelLen, isLast }) {
  const goOn = isLast && content ? ["Continue", () => act("goOn")] : null;
  const again = isLast ? ["Try again", () => act("regenerate")] : null;
  switch (end.kind) {
    case "limit":
      return notice("warn", `Cut at ${counted(Number(end.text) || 0)} tokens, your answer limit.`, goOn ?? again);
    case "context": {
      const size = maxModelLen ? ` of ${counted(maxModelLen)} tokens` : "";
      const shorten = isLast ? ["Answer without the oldest messages", () => act("shorten")] : null;
      return notice("warn", `Cut here: the model's context${size} is full.`, shorten);
    }
    case "stopped":
      return content
        ? notice("info", "You stopped this answer.", goOn)
        : notice("info", `You stopped this answer before it began. ${unanswered(isLast)}`, again);
    case "closed":
      return notice("info", "This answer was cut when the page was closed.", goOn ?? again);
    case "silence":
      return notice("error", `${end.text} The answer may be unfinished.`, goOn ?? again);
    case "lost":
      return notice("error", "The connection to the server was lost.", goOn ?? again);
    default:
      if (end.code === "context_length_exceeded")
        return notice("error", end.text, isLast ? ["Answer without the oldest messages", () => act("shorten")] : null);
      return notice("error", `${end.text} ${content ? "" : unanswered(isLast)}`, goOn ?? again);
  }
}

const unanswered = (isLast) => (isLast ? "" : "The question is not sent along with later ones.");

/** Return a notice of a kind (info, warn, error, wait) with at most one action: [text, function]. */
export function notice(kind, text, action = null) {
  return element(
    "div",
    { class: `notice ${kind}`, role: kind === "error" ? "alert" : null },
    kind === "wait" ? element("span", { class: "pulse", "aria-hidden": "true" }) : null,
    element("p", {}, text),
    action ? button(action[0], action[1]) : null,
  );
}
