// Keyboard shortcuts. Their list is loaded when it is asked for.

const isTyping = ({ target }) => target.closest("input, textarea, select, [contenteditable]") !== null;

/** Call the functions of `actions` by their keys: stop, which returns whether it did, newChat, search, move(way). */
export function startShortcuts(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || event.altKey || event.defaultPrevented) return;
    const isControl = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    let act = null;
    if (key === "escape" && !document.querySelector("dialog[open], :popover-open")) {
      if (actions.stop()) event.preventDefault();
      return;
    }
    if (isControl && event.shiftKey && key === "o") act = actions.newChat;
    else if (isControl && !event.shiftKey && key === "k") act = actions.search;
    else if (!isControl && !isTyping(event) && !document.querySelector("dialog[open]")) {
      if (key === "j") act = () => actions.move(1);
      else if (key === "k") act = () => actions.move(-1);
      else if (key === "?") act = showShortcuts;
    }
    if (!act) return;
    event.preventDefault();
    act();
  });
}

export const showShortcuts = () => import("./shortcut_list.js").then((list) => list.showShortcuts(), () => {});
