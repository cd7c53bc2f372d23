// Toasts: short messages that go by themselves, with at most one action such as Undo.
import { button, element } from "../nodes.js";

const SECONDS = 8;

/** Show a text for eight seconds, longer while it has the focus or the pointer. `act` runs at most once. */
export function toast(text, action = "", act = null) {
  const box = element("div", { class: "toast", role: "status" }, element("p", {}, text));
  let timer = 0;
  const close = () => {
    clearTimeout(timer);
    box.remove();
  };
  const start = () => {
    clearTimeout(timer);
    timer = setTimeout(close, 1000 * SECONDS);
  };
  if (act)
    box.append(
      button(action, () => {
        close();
        act();
      }),
    );
  box.append(button("✕", close, { class: "quiet", "aria-label": "Close" }));
  box.addEventListener("mouseenter", () => clearTimeout(timer));
  box.addEventListener("focusin", () => clearTimeout(timer));
  box.addEventListener("mouseleave", start);
  box.addEventListener("focusout", start);
  document.getElementById("toasts").append(box);
  start();
}

/** Say something to screen readers only. */
export function announce(text) {
  document.getElementById("announcement").textContent = text;
}
