// Markdown that is still being written: only its last block is parsed again with each piece.
import { highlight } from "./code_block.js";
import { lex } from "./markdown_lexer.js";
import { nodesOf } from "./markdown_nodes.js";

const withLineFeeds = (text) => text.replace(/\r\n?/g, "\n"); // as the lexer does
const SETTLED_AFTER = 2; // blocks at the end that may change: a table begins as a paragraph

export class StreamedMarkdown {
  #root;
  #done = 0; // characters of the text whose nodes are final
  #open = []; // nodes of the rest

  /** Draw into an empty node. */
  constructor(root) {
    this.#root = root;
  }

  /** Draw a text that begins with the text before. */
  update(text) {
    const tokens = lex(withLineFeeds(text).slice(this.#done));
    const final = this.#numFinal(tokens);
    for (const node of this.#open) node.remove();
    const settled = nodesOf(tokens.slice(0, final));
    this.#done += tokens.slice(0, final).reduce((sum, token) => sum + token.raw.length, 0);
    this.#open = nodesOf(tokens.slice(final));
    this.#root.append(...settled, ...this.#open);
    if (settled.length) highlight(this.#root);
  }

  /** Draw the whole text, now that it is complete. */
  finish(text) {
    if (/^ {0,3}\[[^\]]+\]:/m.test(text)) this.#restart(); // a reference may define links of earlier blocks
    this.update(text);
    highlight(this.#root);
  }

  #restart() {
    this.#root.replaceChildren();
    this.#done = 0;
    this.#open = [];
  }

  #numFinal(tokens) {
    let numBlocks = 0;
    for (let index = tokens.length - 1; index >= 0; index--)
      if (tokens[index].type !== "space" && ++numBlocks === SETTLED_AFTER) return index;
    return 0;
  }
}
