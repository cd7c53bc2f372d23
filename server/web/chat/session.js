// The conversation shown, the answers that are being written (also of other conversations), and their storage.
import { write } from "./answer.js";
import {
  isUnanswered,
  newConversation,
  newestLeaf,
  newMessage,
  pathTo,
  requestMessages,
  titleOf,
} from "./conversation.js";
import { countTokens } from "./models.js";
import { readSettings, samplingFields } from "./settings.js";

const SAVE_MS = 2000; // between two writes of an answer that is being written
const NUM_ALTERNATIVES = 4; // for each token

export class Session {
  #store;
  #server;
  #listener;
  #opened; // number of calls of `open`
  #runs = new Map(); // answers being written, by ID of the conversation: {message, abort, conversation, messages}

  /**
   * `listener` has onPath() after changes of what is shown, onText(message) while an answer is written,
   * onReport(message, text) when it waits, onEnd(message), onSaved(), onStorageFailure(error), and onModelNeeded(),
   * which sets `model` if it can, and returns a promise.
   */
  constructor(store, server, listener) {
    this.#store = store;
    this.#server = server;
    this.#listener = listener;
    this.#opened = 0;
    this.model = null; // as servedModels returns it
    this.conversation = newConversation(readSettings().system);
    this.messages = new Map();
  }

  /** Start a new conversation, which is stored with its first message. */
  start() {
    this.#opened++;
    this.conversation = newConversation(readSettings().system);
    this.messages = new Map();
    this.#listener.onPath();
  }

  /** Show a stored conversation; return whether it exists. */
  async open(id) {
    if (id === this.conversation.id) return true;
    const number = ++this.#opened;
    const found = this.#runs.get(id) ?? (await this.#store.load(id));
    if (number !== this.#opened) return true; // another one was opened meanwhile
    if (!found) return false;
    ({ conversation: this.conversation, messages: this.messages } = found);
    this.#listener.onPath();
    return true;
  }

  /** The messages shown, the first one first. */
  get path() {
    return pathTo(this.messages, this.conversation.leaf);
  }

  /** The answer that is being written in the conversation shown, null if there is none. */
  get running() {
    return this.#runs.get(this.conversation.id)?.message ?? null;
  }

  stop(id = this.conversation.id) {
    this.#runs.get(id)?.abort.abort();
  }

  /** Ask a question at the end, or in place of `edited`, as a branch beside it. */
  send(text, edited = null) {
    if (this.running) return;
    const parent = edited ? edited.parent : this.conversation.leaf;
    const question = this.#message(parent, "user", text);
    const isUntitled = !this.conversation.title;
    if (isUntitled) this.conversation.title = titleOf(text);
    this.#add(question, isUntitled ? ["title"] : []);
    this.#answer(this.#message(question.id, "assistant"));
  }

  /** Write another answer to the same question: a branch, or in place of an answer without text. */
  regenerate(message, leftOut = message.leftOut ?? 0) {
    if (this.running) return;
    if (isUnanswered(message) && ![...this.messages.values()].some((one) => one.parent === message.id)) {
      message.leftOut = leftOut;
      this.conversation.leaf = message.id;
      this.#answer(message);
    } else {
      const answer = this.#message(message.parent, "assistant");
      answer.leftOut = leftOut;
      this.#answer(answer);
    }
  }

  /** Go on with an answer that was cut. */
  goOn(message) {
    if (!this.running) this.#answer(message, true);
  }

  /** Show the branch of a message: the newest one below it. */
  show(message) {
    this.conversation.leaf = newestLeaf(this.messages, message.id);
    this.#listener.onPath();
    this.#save(this.conversation, [], ["leaf"]);
  }

  /** Delete a conversation, and end its answer; return what `restore` needs. */
  async remove(id) {
    const run = this.#runs.get(id);
    if (run) {
      run.isRemoved = true;
      this.#runs.delete(id);
      run.abort.abort();
    }
    const removed = await this.#store.remove(id);
    if (id === this.conversation.id) this.start();
    return removed;
  }

  restore({ conversation, messages }) {
    return this.#save(conversation, messages);
  }

  async rename(id, title) {
    const isShown = id === this.conversation.id;
    const found = isShown ? this : (this.#runs.get(id) ?? (await this.#store.load(id)));
    if (!found) return; // deleted in another tab
    const { conversation } = found;
    conversation.title = title;
    await this.#save(conversation, [], ["title"], found.messages);
    if (isShown) this.#listener.onPath();
  }

  setSystem(system) {
    this.conversation.system = system;
    if (this.messages.size) this.#save(this.conversation, [], ["system"]);
  }

  /** Return the messages that a request for `message` has, or with a draft at the end. */
  messagesFor(message, { isContinued = false, draft = "" } = {}) {
    const path = message ? pathTo(this.messages, isContinued ? message.id : message.parent) : this.path;
    const leftOut = message?.leftOut ?? this.path.at(-1)?.leftOut ?? 0;
    const drafted = draft ? [...path, { role: "user", content: draft }] : path;
    return requestMessages(this.conversation.system, drafted, leftOut);
  }

  #message(parent, role, content = "") {
    return newMessage(this.conversation, parent, role, content, this.messages.size);
  }

  #add(message, fields = []) {
    this.messages.set(message.id, message);
    this.conversation.leaf = message.id;
    this.conversation.updatedAt = Date.now();
    this.#save(this.conversation, [message], ["leaf", "updatedAt", ...fields]);
  }

  async #answer(message, isContinued = false) {
    const { conversation, messages, model } = this;
    const abort = new AbortController();
    message.end = { kind: "closed", text: "" };
    if (this.path.at(-1)?.id !== message.id) this.#add(message);
    const settings = readSettings();
    message.leftOut ??= this.messages.get(this.messages.get(message.parent)?.parent)?.leftOut ?? 0;
    message.request = {
      model: model?.name ?? settings.model,
      stream: true,
      stream_options: { include_usage: true },
      ...samplingFields(settings),
      logprobs: true,
      top_logprobs: NUM_ALTERNATIVES,
      explain: true,
    };
    const run = { message, abort, conversation, messages, isRemoved: false };
    this.#runs.set(conversation.id, run);
    this.#listener.onPath();
    const asked = this.messagesFor(message);
    const counting = isContinued ? null : countTokens(message.request.model, asked, abort.signal).catch(() => null);
    const numPromptTokens = await counting;
    let savedAt = Date.now();
    await write(message, {
      bodyOf: async (goesOn) => {
        if (!this.model) await this.#listener.onModelNeeded();
        message.request.model = this.model?.name ?? message.request.model;
        const body = message.request;
        if (!goesOn) return { ...body, messages: asked };
        const continued = [...asked, { role: "assistant", content: message.content }];
        return { ...body, messages: continued, add_generation_prompt: false, continue_final_message: true };
      },
      isContinued,
      numPromptTokens,
      server: this.#server,
      signal: abort.signal,
      report: (text) => this.#listener.onReport(message, text),
      onText: () => {
        this.#listener.onText(message);
        if (run.isRemoved || Date.now() - savedAt < SAVE_MS) return;
        savedAt = Date.now();
        this.#save(conversation, [message]);
      },
    });
    if (run.isRemoved) return;
    this.#runs.delete(conversation.id);
    conversation.updatedAt = Date.now();
    await this.#save(conversation, [message], ["updatedAt"], messages);
    this.#listener.onEnd(message);
  }

  /** Write messages and `fields` of a conversation; take over the title and the prompt that another tab gave it. */
  async #save(conversation, changed = [], fields = [], messages = this.messages) {
    try {
      const { title, system } = await this.#store.save(conversation, changed, fields, messages);
      const isRenamed = title !== conversation.title;
      Object.assign(conversation, { title, system });
      if (isRenamed && conversation === this.conversation) this.#listener.onPath();
      this.#listener.onSaved();
    } catch (error) {
      this.#listener.onStorageFailure(error);
    }
  }
}
