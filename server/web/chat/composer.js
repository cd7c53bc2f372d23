// The field for messages, at the foot of the chat: one button that sends or stops, and the context meter.
import { counted, element } from "../nodes.js";

const MAX_LINES = 8;

/** `onSend(text)` and `onStop()` are called for the button and for Enter; `onDraft(text)` after each change. */
export function makeComposer({ onSend, onStop, onDraft }) {
  let isRunning = false;
  const described = { placeholder: "Message", "aria-describedby": "composer-help" };
  const field = element("textarea", { id: "message", rows: "1", ...described });
  const press = element("button", { id: "send", class: "primary", onclick: once }, "Send");
  const levels = { min: "0", max: "1", low: "0.7", high: "0.9", optimum: "0" };
  const bar = element("meter", { ...levels, "aria-label": "Context in use", hidden: true });
  const count = element("span", { id: "meter" });
  const node = element(
    "form",
    { class: "composer", id: "composer", onsubmit: submit },
    element("label", { class: "for-readers", for: "message" }, "Message"),
    element("div", { class: "composer-field" }, field, press),
    element(
      "p",
      { class: "meta composer-foot" },
      element("span", { id: "composer-help" }, "Enter sends, Shift+Enter makes a new line"),
      element("span", { class: "context" }, bar, count),
    ),
  );

  /** The second half of a double click would stop what the first one sent. */
  function once(event) {
    if (event.detail > 1) event.preventDefault();
  }

  function submit(event) {
    event.preventDefault();
    if (isRunning) {
      onStop();
      return;
    }
    if (!field.value.trim()) return;
    const text = field.value;
    set("");
    onSend(text);
  }

  function grow() {
    const style = getComputedStyle(field);
    const line = parseFloat(style.lineHeight);
    const padding = parseFloat(style.paddingTop) + parseFloat(style.paddingBottom) + 2;
    field.style.height = "auto";
    field.style.height = `${Math.min(field.scrollHeight + 2, MAX_LINES * line + padding)}px`;
  }

  function set(text) {
    field.value = text;
    grow();
    onDraft(text);
  }

  field.addEventListener("input", () => {
    grow();
    onDraft(field.value);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!isRunning) node.requestSubmit(); // while an answer is written, the text stays
  });

  return {
    node,
    set,
    focus: () => field.focus(),
    draft: () => field.value,
    setRunning(running) {
      isRunning = running;
      press.textContent = running ? "Stop" : "Send";
      press.classList.toggle("stop", running);
    },
    /** Show how full the context is, both in tokens; null if it is not known. */
    setContext(tokens, maxModelLen) {
      const isKnown = tokens !== null && maxModelLen;
      bar.hidden = !isKnown;
      if (isKnown) bar.value = Math.min(tokens / maxModelLen, 1);
      count.textContent = isKnown ? `${counted(tokens)} of ${counted(maxModelLen)} tokens` : "";
    },
  };
}
