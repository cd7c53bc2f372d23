// Formulas: TeX becomes MathML, by Temml, which is loaded for the first one.
import { element } from "../nodes.js";

const MAX_LENGTH = 5000; // characters
const LIMITS = { throwOnError: true, trust: false, strict: false, maxSize: [20, 20], maxExpand: 500 };

/** Return the node of a formula. It shows the text as it was written until it is set, and if it cannot be set. */
export function maths(tex, isDisplay, raw) {
  const node = element("span", { class: isDisplay ? "maths display" : "maths" }, raw.trim());
  if (isDisplay) Object.assign(node, { tabIndex: 0, role: "group", ariaLabel: "Formula" });
  if (tex.length <= MAX_LENGTH) set(node, tex, isDisplay);
  return node;
}

async function set(node, tex, displayMode) {
  try {
    const { default: temml } = await import("../vendor/temml/temml.min.js");
    const formula = document.createElement("span");
    temml.render(tex, formula, { ...LIMITS, displayMode });
    node.replaceChildren(...formula.childNodes);
  } catch {
    node.classList.add("unset"); // not loaded, or not TeX
  }
}
