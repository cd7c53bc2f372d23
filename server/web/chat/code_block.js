// A code block: its language, a button that copies it, and colours as soon as the highlighter is there.
import { button, element } from "../nodes.js";
import { copying } from "../shell/clipboard.js";

const MAX_HIGHLIGHTED = 50_000; // characters
const FILES = {
  bash: ["bash", "sh", "shell", "zsh", "console"],
  cpp: ["cpp", "c", "c++", "cc", "h", "hpp"],
  javascript: ["javascript", "js", "jsx", "mjs", "typescript", "ts", "tsx"],
  json: ["json", "jsonc"],
  python: ["python", "py", "python3"],
  sql: ["sql", "postgresql", "sqlite"],
  xml: ["xml", "html", "svg", "xhtml"],
};

/** Return the node of a code block. `info` is what follows the fence, of which the first word is the language. */
export function codeBlock(text, info) {
  const language = info.trim().split(/[\s{,]/)[0];
  const code = element("code", {}, text);
  if (fileOf(language)) code.dataset.language = fileOf(language); // for `highlight`
  const copyButton = button("Copy", copying(() => text), { class: "quiet" });
  return element(
    "div",
    { class: "code" },
    element("div", { class: "code-head" }, element("span", {}, language || "text"), copyButton),
    element("pre", { tabindex: "0", role: "region", "aria-label": language ? `Code, ${language}` : "Code" }, code),
  );
}

const fileOf = (language) => Object.keys(FILES).find((file) => FILES[file].includes(language.toLowerCase()));

/** Colour the code blocks in a node that are not coloured yet. The highlighter is loaded for the first one. */
export async function highlight(root) {
  for (const code of root.querySelectorAll("code[data-language]")) {
    const { language } = code.dataset;
    delete code.dataset.language;
    const text = code.textContent;
    if (text.length > MAX_HIGHLIGHTED) continue;
    try {
      const { default: highlighter } = await import("../vendor/highlight/core.min.js");
      if (!highlighter.getLanguage(language)) {
        const grammar = await import(`../vendor/highlight/${language}.min.js`);
        highlighter.registerLanguage(language, grammar.default);
      }
      // The tree that its HTML is made of: {scope, children}, of which leaves are texts.
      const tree = highlighter.highlight(text, { language, ignoreIllegals: true })._emitter.rootNode;
      code.replaceChildren(...tree.children.map(coloured));
    } catch {
      return; // the code is there without colours
    }
  }
}

function coloured(node) {
  if (typeof node === "string") return node;
  const kind = node.scope?.split(".")[0].replace(/[^a-z-]/gi, "");
  return element("span", { class: kind ? `code-${kind}` : null }, ...node.children.map(coloured));
}
