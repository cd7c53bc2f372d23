// The conversation of the page before this one, which kept it in localStorage: taken over once.
import { ofBrowser } from "../shell/storage.js";
import { newConversation, newMessage, titleOf } from "./conversation.js";

const NAME = "messages";

export async function takeOver(store) {
  let earlier;
  try {
    earlier = JSON.parse(ofBrowser.get(NAME));
  } catch {
    return;
  }
  if (!Array.isArray(earlier) || !earlier.length) return;
  const conversation = newConversation(ofBrowser.get("system") ?? "");
  const messages = [];
  for (const { role, content } of earlier) {
    if ((role !== "user" && role !== "assistant") || typeof content !== "string") return;
    const message = newMessage(conversation, conversation.leaf, role, content, messages.length);
    conversation.leaf = message.id;
    messages.push(message);
  }
  conversation.title = titleOf(messages[0].content);
  await store.save(conversation, messages);
  ofBrowser.remove(NAME);
  ofBrowser.remove("system");
}
