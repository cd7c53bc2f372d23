// The inspector: the tokens of an answer, its timing, and its request.
import { button, element } from "../nodes.js";
import { requestPart } from "./request_part.js";
import { timingPart } from "./timing_part.js";
import { tokensPart } from "./tokens_part.js";

const PARTS = { tokens: ["Tokens", tokensPart], timing: ["Timing", timingPart], request: ["Request", requestPart] };

const NOTHING = "Ask something first: here are the tokens, the timing and the request of an answer.";

/** Show a part for an answer, or for none. `context` has the messages of its request and the address. */
export function openInspector(part, message, context) {
  const root = document.getElementById("inspector");
  const opener = document.getElementById("open-inspector");
  const names = Object.keys(PARTS);
  const panel = element("div", { class: "panel", role: "tabpanel", id: "inspector-panel", tabindex: "0" });
  const tabs = names.map((name) =>
    button(PARTS[name][0], () => show(name), { role: "tab", id: `tab-${name}`, "aria-controls": "inspector-panel" }),
  );
  const list = element("div", { role: "tablist", "aria-label": "Inspector", onkeydown: turn }, ...tabs);

  function show(name) {
    tabs.forEach((tab, index) => {
      tab.setAttribute("aria-selected", String(names[index] === name));
      tab.tabIndex = names[index] === name ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", `tab-${name}`);
    panel.replaceChildren(message ? PARTS[name][1](message, context) : element("p", { class: "meta" }, NOTHING));
  }

  function turn(event) {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!way) return;
    event.preventDefault();
    const at = (tabs.indexOf(document.activeElement) + way + tabs.length) % tabs.length;
    show(names[at]);
    tabs[at].focus();
  }

  const close = button("✕", closeInspector, { class: "quiet", "aria-label": "Close the inspector" });
  root.replaceChildren(element("div", { class: "inspector-head" }, list, close), panel);
  root.hidden = false;
  opener.setAttribute("aria-expanded", "true");
  show(part);
  tabs[names.indexOf(part)].focus();
}

export function closeInspector() {
  document.getElementById("inspector").hidden = true;
  const opener = document.getElementById("open-inspector");
  opener.setAttribute("aria-expanded", "false");
  opener.focus();
}
