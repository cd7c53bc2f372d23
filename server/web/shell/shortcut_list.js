// The list of keyboard shortcuts.
import { button, element } from "../nodes.js";

const LIST = [
  ["Enter", "Send the message"],
  ["Shift+Enter", "New line"],
  ["Esc", "Stop the answer, or close what is open"],
  ["Ctrl+Shift+O", "New chat"],
  ["Ctrl+K", "Search conversations"],
  ["J, K", "Next and previous message"],
  ["←, →", "Next and previous token, in the inspector"],
  ["?", "This list"],
];

const shown = (keys) => element("dt", {}, element("kbd", {}, keys));

export function showShortcuts() {
  const dialog = element(
    "dialog",
    { "aria-labelledby": "shortcuts-title", onclose: () => dialog.remove() },
    element("h2", { id: "shortcuts-title" }, "Keyboard shortcuts"),
    element("dl", {}, ...LIST.map(([keys, text]) => [shown(keys), element("dd", {}, text)])),
    element("div", { class: "end" }, button("Close", () => dialog.close(), { autofocus: true })),
  );
  document.body.append(dialog);
  dialog.showModal();
}
