// The messages on the screen: views of the path, reused while the path changes, and drawn once a frame.
import { element } from "../nodes.js";
import { siblings } from "./conversation.js";
import { MessageView } from "./message_view.js";

export class MessageList {
  #views = new Map(); // by ID of the message
  #session;
  #act;
  #waiting = new Set(); // answers to draw in the next frame
  #isScheduled = false;

  constructor(session, act) {
    this.#session = session;
    this.#act = act;
    this.node = element("div", { class: "messages", id: "messages" });
  }

  /** Draw the path: new messages appear, others keep their nodes. */
  draw() {
    const { path, running, messages, model } = this.#session;
    const views = path.map((message) => this.#views.get(message.id) ?? new MessageView(message, this.#act));
    this.#views = new Map(path.map((message, index) => [message.id, views[index]]));
    path.forEach((message, index) => {
      const versions = siblings(messages, message);
      views[index].draw({
        isRunning: message === running,
        isLast: index === path.length - 1,
        isBusy: running !== null,
        branch: [versions.indexOf(message) + 1, versions.length],
        maxModelLen: model?.maxModelLen ?? 0,
      });
    });
    const nodes = views.map((view) => view.node);
    const wanted = new Set(nodes);
    for (const node of [...this.node.children]) if (!wanted.has(node)) node.remove();
    nodes.forEach((node, index) => {
      if (this.node.children[index] !== node) this.node.insertBefore(node, this.node.children[index] ?? null);
    });
  }

  /** Draw the text of an answer in the next frame, at most once per frame. */
  drawSoon(message) {
    this.#waiting.add(message.id);
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    requestAnimationFrame(() => {
      this.#isScheduled = false;
      for (const id of this.#waiting) this.#views.get(id)?.drawText();
      this.#waiting.clear();
    });
  }

  report(message, text) {
    this.#views.get(message.id)?.report(text);
  }

  /** Give the focus to a tool of a message, such as "next", or to the message itself. */
  focus(message, tool = "") {
    this.#views.get(message.id)?.focus(tool);
  }

  edit(message) {
    return this.#views.get(message.id).edit();
  }

  /** Move the focus to the next or previous message. */
  move(way) {
    const nodes = [...this.node.children];
    const at = nodes.findIndex((node) => node.contains(document.activeElement));
    const next = at < 0 ? (way > 0 ? 0 : nodes.length - 1) : Math.min(Math.max(at + way, 0), nodes.length - 1);
    nodes[next]?.focus();
    nodes[next]?.scrollIntoView({ block: "nearest" });
  }
}
