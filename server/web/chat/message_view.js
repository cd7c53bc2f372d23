// One message on the screen: the reader's text as it was written, or an answer with its thought, end and actions.
import { button, element } from "../nodes.js";
import { copying } from "../shell/clipboard.js";
import { notice, noticeOf } from "./notice.js";
import { StreamedMarkdown } from "./streamed_markdown.js";

export class MessageView {
  #message;
  #act;
  #markdown = null;
  #drawn = ""; // text of the answer that is drawn
  #isFinished = false;
  #report = "";

  /** `act(name, message, value)` does what the reader asks for: see view.js. */
  constructor(message, act) {
    this.#message = message;
    this.#act = act;
    const isUser = message.role === "user";
    this.body = element("div", { class: isUser ? "text" : "text markdown" });
    this.notices = element("div", {});
    this.tools = element("div", { class: "tools" });
    this.thought = element(
      "details",
      { class: "thought", hidden: true },
      element("summary", {}, "Thought"),
      element("div", { class: "verbatim" }),
    );
    this.node = element(
      "article",
      { class: `message ${message.role}`, tabindex: "-1", "aria-label": isUser ? "You" : "Answer" },
      element("h2", { class: "for-readers" }, isUser ? "You" : "Answer"),
      isUser ? null : this.thought,
      this.body,
      this.notices,
      this.tools,
    );
  }

  /** Draw all: `state` has isRunning, isLast, isBusy (another answer is written), branch [number, of], maxModelLen. */
  draw(state) {
    const message = this.#message;
    this.node.setAttribute("aria-busy", String(state.isRunning));
    if (message.role === "user") this.body.textContent = message.content;
    else this.drawText(!state.isRunning);
    const act = (name) => this.#act(name, message);
    const pending = state.isRunning && !message.content && !message.thought ? this.#report || "Sending" : this.#report;
    this.notices.replaceChildren(
      ...noticeOf(state.isRunning ? { ...message, end: null } : message, { act, ...state }),
      ...(state.isRunning && pending ? [notice("wait", pending)] : []),
    );
    const focused = this.tools.contains(document.activeElement) ? document.activeElement.dataset.tool : null;
    this.tools.replaceChildren(...this.#toolsFor(state));
    this.tools.hidden = state.isRunning;
    if (focused) this.focus(focused);
  }

  /** Give the focus to a tool, the other version where there is no next or previous one, or to the message itself. */
  focus(tool) {
    const names = tool === "next" || tool === "previous" ? [tool, "next", "previous"] : [tool];
    const found = names.map((name) => this.tools.querySelector(`[data-tool="${name}"]:enabled`)).find(Boolean);
    (found ?? this.node).focus({ preventScroll: true });
  }

  /** Draw the text of an answer that is being written, or all of it at its end. */
  drawText(isComplete = false) {
    const { content, thought = "" } = this.#message;
    this.thought.hidden = !thought;
    if (thought) {
      this.thought.firstChild.textContent = content || isComplete ? "Thought" : "Thinking…";
      this.thought.lastChild.textContent = thought;
    }
    if (this.#isFinished && content === this.#drawn) return;
    this.#isFinished = isComplete;
    if (!this.#markdown || !content.startsWith(this.#drawn)) {
      this.body.replaceChildren();
      this.#markdown = new StreamedMarkdown(this.body);
      this.#drawn = "";
    }
    if (isComplete) this.#markdown.finish(content);
    else if (content !== this.#drawn) this.#markdown.update(content);
    this.#drawn = content;
  }

  /** Show what the answer waits for; "" if it goes on. */
  report(text) {
    this.#report = text;
    this.notices.replaceChildren(...(text ? [notice("wait", text)] : []));
  }

  #toolsFor({ isBusy, branch }) {
    const message = this.#message;
    const tool = (text, name, more = {}) =>
      button(text, () => this.#act(name, message), { class: "quiet", "data-tool": name, ...more });
    const tools = [button("Copy", copying(() => message.content), { class: "quiet", "data-tool": "copy" })];
    if (message.role === "user") tools.push(tool("Edit", "edit", { disabled: isBusy }));
    else {
      tools.push(tool("Regenerate", "regenerate", { disabled: isBusy }));
      if (message.tokens?.length) tools.push(tool("Tokens", "tokens"));
      if (message.requestId) tools.push(tool("Timing", "timing"));
    }
    if (branch[1] > 1) {
      const turn = (text, label, way, isPossible) => {
        const isDisabled = isBusy || !isPossible;
        const named = { "aria-label": label, "data-tool": way > 0 ? "next" : "previous" };
        const attributes = { class: "quiet", disabled: isDisabled, ...named };
        return button(text, () => this.#act("turn", message, way), attributes);
      };
      tools.push(
        element(
          "span",
          { class: "branch", role: "group", "aria-label": "Versions" },
          turn("‹", "Previous version", -1, branch[0] > 1),
          `${branch[0]} of ${branch[1]}`,
          turn("›", "Next version", 1, branch[0] < branch[1]),
        ),
      );
    }
    if (message.facts) tools.push(element("span", { class: "meta facts" }, message.facts));
    return tools;
  }

  /** Replace the text by a field to edit it; resolve to the new text, or null if the reader cancels. */
  edit() {
    return new Promise((done) => {
      const field = element("textarea", { "aria-label": "Edit the message", rows: "4" });
      field.value = this.#message.content;
      const finish = (text) => {
        form.replaceWith(this.body);
        this.tools.hidden = false;
        done(text);
      };
      const send = () => field.value.trim() && finish(field.value);
      const form = element(
        "div",
        { class: "edit" },
        field,
        element(
          "div",
          { class: "end" },
          button("Cancel", () => finish(null)),
          button("Send", send, { class: "primary" }),
        ),
      );
      form.addEventListener("keydown", (event) => {
        if (event.key === "Escape") finish(null);
        else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target === field) send();
        else return;
        event.preventDefault();
        event.stopPropagation();
      });
      this.tools.hidden = true;
      this.body.replaceWith(form);
      field.focus();
    });
  }
}
