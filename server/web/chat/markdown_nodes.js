// Markdown tokens to nodes. HTML in the text stays text; images become links, since nothing is loaded from elsewhere.
import { element } from "../nodes.js";
import { codeBlock } from "./code_block.js";
import { decoded } from "./entities.js";
import { maths } from "./maths.js";

const LINKED = new Set(["http:", "https:", "mailto:"]);

/** Return the nodes of block tokens. */
export function nodesOf(tokens) {
  return tokens.flatMap(blockOf);
}

function blockOf(token) {
  switch (token.type) {
    case "space":
    case "def":
      return [];
    case "hr":
      return [element("hr")];
    case "heading":
      // Below the heading of the message.
      return [element(`h${Math.min(token.depth + 2, 6)}`, {}, ...inline(token.tokens))];
    case "code":
      return [codeBlock(token.text, token.lang ?? "")];
    case "blockquote":
      return [element("blockquote", {}, ...nodesOf(token.tokens))];
    case "list":
      return [listOf(token)];
    case "table":
      return [tableOf(token)];
    case "paragraph":
      return [element("p", {}, ...inline(token.tokens))];
    case "blockMaths":
      return [maths(token.tex, true, token.raw)];
    case "text": // of a list item
      return token.tokens ? inline(token.tokens) : [decoded(token.text)];
    case "checkbox":
      return [checkbox(token)];
    default: // html, and what a later version of the lexer may have
      return [element("p", { class: "verbatim" }, token.raw.replace(/\n+$/, ""))];
  }
}

function listOf(token) {
  const start = token.ordered && token.start !== 1 ? token.start : null;
  const items = token.items.map((item) => {
    return element(
      "li",
      { class: item.task ? "task" : null },
      ...item.tokens.flatMap(blockOf),
    );
  });
  return element(token.ordered ? "ol" : "ul", { start }, ...items);
}

const checkbox = ({ checked }) =>
  element("input", { type: "checkbox", disabled: true, checked, "aria-label": checked ? "done" : "not done" });

function tableOf(token) {
  const cell = (name) => (one) => {
    const attributes = { class: one.align ? `align-${one.align}` : null, scope: name === "th" ? "col" : null };
    return element(name, attributes, ...inline(one.tokens));
  };
  const head = element("thead", {}, element("tr", {}, ...token.header.map(cell("th"))));
  const body = element("tbody", {}, ...token.rows.map((row) => element("tr", {}, ...row.map(cell("td")))));
  const table = element("table", {}, head, body);
  return element("div", { class: "table-scroll", tabindex: "0", role: "region", "aria-label": "Table" }, table);
}

function inline(tokens) {
  return tokens.flatMap(inlineOf);
}

function inlineOf(token) {
  switch (token.type) {
    case "strong":
    case "em":
    case "del":
      return [element(token.type, {}, ...inline(token.tokens))];
    case "codespan":
      return [element("code", {}, token.text)];
    case "br":
      return [element("br")];
    case "link":
      return linkOf(token.href, inline(token.tokens), token.raw);
    case "image":
      return linkOf(token.href, [`image: ${decoded(token.text) || token.href}`], token.raw);
    case "inlineMaths":
      return [maths(token.tex, token.isDisplay, token.raw)];
    case "checkbox":
      return [checkbox(token)];
    case "escape":
    case "text":
      return token.tokens ? inline(token.tokens) : [decoded(token.text)];
    default:
      return [token.raw];
  }
}

/** Return a link to another site, or the nodes alone if the address is anything else than http, https or mailto. */
function linkOf(href, nodes, raw) {
  let url;
  try {
    url = new URL(decoded(href)); // relative addresses fail: they would lead into this server
  } catch {
    return [raw];
  }
  if (!LINKED.has(url.protocol)) return [raw];
  return [element("a", { href: url.href, rel: "noopener noreferrer nofollow", target: "_blank" }, ...nodes)];
}
