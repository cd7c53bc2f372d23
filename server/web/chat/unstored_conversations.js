// Conversations where the browser denies its database: they are kept until the page is closed.

/** What ConversationStore is, without a database. */
export class UnstoredConversations {
  #all = new Map(); // {conversation, messages} by ID; copies, as in a database

  async all() {
    const found = [...this.#all.values()].map(({ conversation }) => structuredClone(conversation));
    return found.sort((one, other) => other.updatedAt - one.updatedAt);
  }

  async load(id) {
    return structuredClone(this.#all.get(id) ?? null);
  }

  async save(conversation, changed = [], fields = []) {
    const before = this.#all.get(conversation.id);
    const messages = before?.messages ?? new Map();
    for (const one of changed) messages.set(one.id, structuredClone(one));
    const kept = before ? { ...before.conversation } : structuredClone(conversation);
    for (const name of fields) kept[name] = conversation[name];
    this.#all.set(conversation.id, { conversation: kept, messages });
    return kept;
  }

  async remove(id) {
    const found = this.#all.get(id);
    if (!found) throw new Error("It is not stored any more.");
    this.#all.delete(id);
    return { conversation: found.conversation, messages: [...found.messages.values()] };
  }

  async search(text) {
    const wanted = text.toLowerCase();
    const has = (value) => value.toLowerCase().includes(wanted);
    const found = [...this.#all.values()].filter(
      ({ conversation, messages }) =>
        has(conversation.title) || [...messages.values()].some(({ content }) => has(content)),
    );
    return new Set(found.map(({ conversation }) => conversation.id));
  }
}
