// Markdown to tokens: CommonMark and GitHub's tables, task lists and strikethrough, by marked; and TeX.
import { Marked, Tokenizer } from "../vendor/marked/marked.esm.js";

export const MAX_NESTING = 30;

// Display formulas: $$...$$ and \[...\] on lines of their own.
const blockMaths = {
  name: "blockMaths",
  level: "block",
  start: (text) => indexOf(text, /(?:^|\n) {0,3}(?:\$\$|\\\[)/),
  tokenizer(text) {
    const found = /^ {0,3}(?:\$\$([^$]+?)\$\$|\\\[([\s\S]+?)\\\])[ \t]*(?:\n|$)/.exec(text);
    return found ? { type: "blockMaths", raw: found[0], tex: (found[1] ?? found[2]).trim() } : undefined;
  },
};

// In a line: \(...\), $$...$$, and $...$ as Pandoc has it: no space inside and no digit after it, as prices have.
const inlineMaths = {
  name: "inlineMaths",
  level: "inline",
  start: (text) => indexOf(text, /\$|\\[([]/),
  tokenizer(text) {
    const found =
      /^\\\(([\s\S]+?)\\\)/.exec(text) ??
      /^\$(?![\s$])((?:\\.|[^$\\\n])*?[^\s\\$]|[^\s\\$])\$(?!\d)/.exec(text);
    if (found) return { type: "inlineMaths", raw: found[0], tex: found[1], isDisplay: false };
    const display = /^\$\$([^$]+?)\$\$/.exec(text) ?? /^\\\[([\s\S]+?)\\\]/.exec(text);
    return display ? { type: "inlineMaths", raw: display[0], tex: display[1], isDisplay: true } : undefined;
  },
};

function indexOf(text, pattern) {
  const index = text.search(pattern);
  return index < 0 ? undefined : index;
}

/** Nesting is read down to MAX_NESTING levels, in blocks and in lines; what is deeper stays as it was written. */
class BoundedTokenizer extends Tokenizer {
  #depth = 0;

  #within(read) {
    if (this.#depth === MAX_NESTING) return undefined;
    this.#depth++;
    try {
      return read();
    } finally {
      this.#depth--;
    }
  }

  blockquote(...given) {
    return this.#within(() => super.blockquote(...given));
  }

  list(...given) {
    return this.#within(() => super.list(...given));
  }

  link(...given) {
    return this.#within(() => super.link(...given));
  }

  reflink(...given) {
    return this.#within(() => super.reflink(...given));
  }

  emStrong(...given) {
    return this.#within(() => super.emStrong(...given));
  }

  del(...given) {
    return this.#within(() => super.del(...given));
  }
}

const parser = new Marked({ gfm: true, extensions: [blockMaths, inlineMaths] });

/** Return the block tokens of a text; their `raw` texts make the text. */
export function lex(text) {
  return parser.lexer(text, { ...parser.defaults, tokenizer: new BoundedTokenizer() });
}
