// Tokens as a row of words, with spaces and line ends made visible.
import { element } from "../nodes.js";

/** Return the text of a token in which nothing is invisible. */
export const visible = (text) =>
  text.replaceAll(" ", "·").replaceAll("\n", "↵").replace(/[\s\p{Cc}\p{Cf}]/gu, codePoint) || "∅";

const codePoint = (one) => `U+${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

/** Return a list of tokens, with their ids under them if `hasIds`. */
export function tokenStrip(tokens, { hasIds = false } = {}) {
  return element(
    "ol",
    { class: "token-strip", start: "0" },
    tokens.map(({ id, text }) =>
      element("li", {}, element("code", {}, visible(text)), hasIds && element("span", { class: "meta" }, String(id))),
    ),
  );
}
