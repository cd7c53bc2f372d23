// Conversations in the browser's IndexedDB: one record for each conversation and for each message.

const NAME = "caravan";
const VERSION = 1;

const settled = (request) =>
  new Promise((done, fail) => {
    request.onsuccess = () => done(request.result);
    request.onerror = () => fail(request.error);
  });

async function opened() {
  const request = indexedDB.open(NAME, VERSION);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("conversations", { keyPath: "id" });
    request.result.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
  };
  return settled(request);
}

/**
 * Return the conversations of this browser, or of this page alone where the browser denies its database.
 *
 * They can be used at once: each use waits for the database. `isKept` is a promise of whether they outlive the page.
 */
export function openStore() {
  const opening = opened().then(
    (database) => new ConversationStore(database),
    () => import("./unstored_conversations.js").then(({ UnstoredConversations }) => new UnstoredConversations()),
  );
  const through = (name) => async (...given) => (await opening)[name](...given);
  const uses = ["all", "load", "save", "remove", "search"].map((name) => [name, through(name)]);
  const isKept = opening.then((store) => store instanceof ConversationStore, () => false);
  return { ...Object.fromEntries(uses), isKept };
}

class ConversationStore {
  #database;
  #stored = new Set(); // IDs of the conversations that this page has read or written

  constructor(database) {
    this.#database = database;
  }

  /** Run `work` with the object stores in one transaction; return its result when all is written. */
  async #with(mode, work) {
    const transaction = this.#database.transaction(["conversations", "messages"], mode);
    const isWritten = new Promise((done, fail) => {
      transaction.oncomplete = done;
      transaction.onabort = () => fail(transaction.error ?? new Error("The browser's storage was not written."));
    });
    isWritten.catch(() => {}); // `work` may fail first
    const result = await work(transaction.objectStore("conversations"), transaction.objectStore("messages"));
    await isWritten;
    return result;
  }

  /** Return all conversations, the latest first. */
  async all() {
    const found = await this.#with("readonly", (conversations) => settled(conversations.getAll()));
    return found.sort((one, other) => other.updatedAt - one.updatedAt);
  }

  /** Return a conversation and its messages by ID, null if there is none. */
  load(id) {
    return this.#with("readonly", async (conversations, messages) => {
      const [conversation, found] = await Promise.all([
        settled(conversations.get(id)),
        settled(messages.index("conversation").getAll(id)),
      ]);
      if (!conversation) return null;
      this.#stored.add(id);
      return { conversation, messages: new Map(found.map((one) => [one.id, one])) };
    });
  }

  /**
   * Write some messages of a conversation, and `fields` of the conversation itself; return it as it is stored now.
   *
   * Other fields stay as they are: another tab may have written them. A conversation that is not stored is written
   * whole, with `all` its messages if another tab has deleted it. Raises QuotaExceededError if the storage is full.
   */
  async save(conversation, changed = [], fields = [], all = null) {
    const { id } = conversation;
    const isNew = !this.#stored.has(id);
    const values = fields.map((name) => [name, conversation[name]]);
    if (isNew || changed.length)
      await this.#with("readwrite", (conversations, messages) => {
        const writes = changed.map((one) => messages.put(one));
        if (isNew) writes.push(conversations.put(conversation));
        conversations.transaction.commit(); // at once: a transaction that waits is lost when the page is left
        return Promise.all(writes.map(settled));
      });
    this.#stored.add(id);
    if (isNew || !fields.length) return conversation;
    return this.#with("readwrite", async (conversations, messages) => {
      const stored = await settled(conversations.get(id));
      const kept = { ...(stored ?? conversation), ...Object.fromEntries(values) };
      const lost = stored ? [] : [...all.values()];
      await Promise.all([conversations.put(kept), ...lost.map((one) => messages.put(one))].map(settled));
      return kept;
    });
  }

  /** Delete a conversation; return what `save` needs to undo that. */
  async remove(id) {
    const found = await this.load(id);
    if (!found) throw new Error("It is not stored any more.");
    await this.#with("readwrite", (conversations, messages) => {
      const writes = [conversations.delete(id), ...[...found.messages.keys()].map((one) => messages.delete(one))];
      conversations.transaction.commit();
      return Promise.all(writes.map(settled));
    });
    this.#stored.delete(id);
    return { conversation: found.conversation, messages: [...found.messages.values()] };
  }

  /** Return the IDs of the conversations with a text in their title or in a message. */
  async search(text) {
    const wanted = text.toLowerCase();
    const has = (value) => value.toLowerCase().includes(wanted);
    return this.#with("readonly", async (conversations, messages) => {
      const [titles, texts] = await Promise.all([settled(conversations.getAll()), settled(messages.getAll())]);
      const ids = titles.filter((one) => has(one.title)).map((one) => one.id);
      return new Set([...ids, ...texts.filter((one) => has(one.content)).map((one) => one.conversation)]);
    });
  }
}
