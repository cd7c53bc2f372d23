// An answer without the oldest messages, where the conversation is longer than the context.
import { pathTo, requestMessages } from "./conversation.js";
import { countTokens } from "./models.js";

const MIN_ROOM = 0.25; // of the context, for the answer, after messages were left out

/** Answer without the oldest messages, as many as it takes; raises an Error that says why not. */
export async function shorten(session, message) {
  const { conversation, model } = session;
  if (!model) throw new Error("No server has answered yet.");
  const before = pathTo(session.messages, message.parent);
  const starts = before.flatMap((one, index) => (one.role === "user" && index > 0 ? [index] : []));
  for (const leftOut of starts) {
    const count = await countTokens(model.name, requestMessages(conversation.system, before, leftOut));
    if (session.conversation !== conversation) return; // another one was opened meanwhile
    if (count <= (1 - MIN_ROOM) * model.maxModelLen) return session.regenerate(message, leftOut);
  }
  throw new Error("The last question alone is too long for this model. Edit it.");
}
