// The fourteen stops: what happens there, where it is in the code, and what the reader guesses first.
import { largest, logitsOf, ofNumbers, ofWords, tensorsOf, weightsAt } from "./questions.js";
import { place4 } from "./tensor_table.js";
import { visible } from "./token_strip.js";

const LLAMA = "model/llama.py";
const quoted = ({ text }) => `“${visible(text)}”`;
const size = (numbers) => numbers.reduce((sum, one) => sum + Math.abs(one), 0);

export const STOPS = [
  {
    name: "text",
    title: "Text",
    text: "A model reads no letters. The text is cut into tokens: words and pieces of words that are frequent.",
    code: { file: "model/tokenizer/tokenizer.py", symbol: "Tokenizer.encode", marks: ["self._vocabulary.encode"] },
    question: (trace) =>
      ofNumbers("How many tokens will this be?", trace.tokens.length, [
        trace.prompt.split(/\s+/).length - 2,
        trace.prompt.length,
        trace.tokens.length * 2,
      ]),
    after: (trace) => `${trace.prompt.length} characters are ${trace.tokens.length} tokens.`,
  },
  {
    name: "template",
    title: "Template",
    text: "A chat model was trained on conversations with marks between the messages. The template writes them.",
    code: { file: "server/sandbox/chat_template.py", symbol: "ChatTemplate.render",
      marks: ["self._render", "guarded"] },
    question: (trace) =>
      ofWords(
        "Does the model get only what you wrote?",
        ["Yes, character by character", "No, there are marks around it"],
        trace.tokens.some(({ text }) => /^<.*>$/.test(text)) ? 1 : 0,
      ),
    after: () => "This is the whole text that the model gets. Change “as a message to a chat model” above and " +
      "press Run to see the difference.",
  },
  {
    name: "ids",
    title: "Token ids",
    text: "Each token has a number, its place in the vocabulary; the model sees nothing else of it. " +
      "A · stands for a space.",
    code: { file: LLAMA, symbol: "Llama.hidden_states", marks: ["token_ids"] },
    question(trace) {
      const [one, ...others] = trace.tokens.map(({ text }) => text);
      const twice = [one, ...others].find((text, index, all) => all.indexOf(text) < index);
      const words = twice === undefined ? `“${visible(one)}”` : `“${visible(twice)}”, which is there more than once,`;
      const ids = new Set(trace.tokens.filter(({ text }) => text === (twice ?? one)).map(({ id }) => id));
      return ofNumbers(`How many different ids does ${words} have?`, ids.size, [1, 2]);
    },
    after: () => "The same token has the same id wherever it is. Frequent ones mostly have small ids.",
  },
  {
    name: "embedding",
    title: "Embedding",
    text: "The id picks a row of a table. The row is learned: it is where the meaning of a token begins.",
    code: { file: LLAMA, symbol: "Llama.embed", marks: ["self.embedding"] },
    question(trace) {
      const [count, width] = tensorsOf(trace, "embedding").x.shape;
      return ofNumbers("How many numbers stand for one token?", width, [count, 1, 2 * width]);
    },
    after(trace) {
      const [count, width] = tensorsOf(trace, "embedding").x.shape;
      return `x has a row of ${width} numbers for each of the ${count} tokens. It is called the residual stream.`;
    },
  },
  {
    name: "norm",
    title: "Norm",
    text: "Before attention, and again before the feed-forward network, a row is divided by the root of " +
      "the mean of its squares, and multiplied by a learned weight. Unlike LayerNorm, nothing is subtracted.",
    code: { file: "model/rms_norm.py", symbol: "RMSNorm.forward", marks: ["mean_square", "rsqrt"] },
    question(trace) {
      const { x, "norm(x)": normed } = tensorsOf(trace, "norm");
      const isLarger = Math.abs(normed.numbers[0]) > Math.abs(x.numbers[0]);
      return ofWords(`The first number of x is ${place4(x.numbers[0])}. After the norm it is …`,
        ["farther from zero", "nearer to zero"], isLarger ? 0 : 1);
    },
    after(trace) {
      const { x, weight, "mean of the squares": mean, "norm(x)": normed } = tensorsOf(trace, "norm");
      return `${place4(x.numbers[0])} / √${place4(mean.numbers[0])} × ${place4(weight.numbers[0])} is ` +
        `${place4(normed.numbers[0])}; a tiny number under the root prevents a division by zero.`;
    },
  },
  {
    name: "qkv",
    title: "Queries, keys, values",
    text: "Three products of the same row: what a token looks for, what it offers, and what it gives when it is found.",
    code: { file: LLAMA, symbol: "Attention.forward", marks: ["self.qkv(x)", "qkv.split"] },
    question: (trace) =>
      ofNumbers(`There are ${trace.num_heads} query heads. How many key heads?`, trace.num_kv_heads,
        [trace.num_heads, 1, 2 * trace.num_heads]),
    after(trace) {
      const group = trace.num_heads / trace.num_kv_heads;
      return group === 1
        ? "Each query head has keys and values of its own: multi-head attention."
        : `${group} query heads share one KV head, so the cache is ${group} times smaller: grouped-query attention.`;
    },
  },
  {
    name: "rope",
    title: "RoPE",
    text: "A query and a key are turned, pair by pair, by an angle that grows with the position of the token.",
    code: { file: "model/rope.py", symbol: "apply_rope", marks: ["a * cos - b * sin"] },
    question(trace) {
      const parts = tensorsOf(trace, "rope");
      const before = Math.hypot(parts["a, the first half"].numbers[0], parts["b, the second half"].numbers[0]);
      const after = Math.hypot(parts["a cos - b sin"].numbers[0], parts["b cos + a sin"].numbers[0]);
      const change = after / before - 1;
      return ofWords("What does the turn do to the length of a pair (a, b)?", ["longer", "the same", "shorter"],
        Math.abs(change) < 1e-3 ? 1 : change > 0 ? 0 : 2);
    },
    after: () => "Only angles change. The product of a turned query and a turned key depends on how far apart " +
      "they are.",
  },
  {
    name: "scores",
    title: "Scores and mask",
    text: "A query times a key, over the square root of their width, is a score: how well they fit. A mask hides the " +
      "tokens that come later.",
    code: { file: "model/attention/reference.py", symbol: "causal_attention",
      marks: ["grouped[head]", "masked_fill_"] },
    question(trace) {
      const { numbers } = tensorsOf(trace, "scores")["scores after the mask"];
      const seen = numbers.filter((one) => one !== null).length;
      return ofNumbers("How many tokens may the first token look at?", seen, [trace.tokens.length, 2]);
    },
    after: () => "Itself only. So what a token computes never depends on later ones, and can be kept for the next " +
      "request.",
  },
  {
    name: "softmax",
    title: "Softmax",
    text: "Scores become weights: all positive, with the sum one.",
    code: { file: "model/attention/reference.py", symbol: "causal_attention", marks: ["exp_()", "total"] },
    question(trace) {
      const { head, position } = trace;
      const best = largest(weightsAt(trace, head, position));
      const places = [...new Set([0, Math.max(position - 1, 0), position, best])].sort((a, b) => a - b);
      return ofWords(`Which token gets most of the attention of token ${position}, ${quoted(trace.tokens[position])}?`,
        places.map((place) => `${place}: ${visible(trace.tokens[place].text)}`), places.indexOf(best));
    },
    after(trace) {
      const weights = weightsAt(trace, trace.head, trace.position);
      const best = largest(weights);
      return `Token ${best} gets about ${(100 * weights[best]).toFixed(0)} %. This is head ${trace.head} of layer ` +
        `${trace.layer}; others look elsewhere.`;
    },
  },
  {
    name: "values",
    title: "Values",
    text: "The head adds up the values of all tokens it sees, each times its weight.",
    code: { file: "model/attention/reference.py", symbol: "causal_attention",
      marks: ["value_tiles[head]", "mixed[head]"] },
    question(trace) {
      const [count, heads, width] = tensorsOf(trace, "values")["mixed values"].shape;
      return ofNumbers("How many numbers does one head pass on for one token?", width, [count, heads, width * heads]);
    },
    after(trace) {
      const [, heads, width] = tensorsOf(trace, "values")["mixed values"].shape;
      return `${width} of each of the ${heads} heads: ${width * heads} numbers, which one more product mixes.`;
    },
  },
  {
    name: "residual",
    title: "Residual",
    text: "What attention found is added to the row. Nothing is replaced: each layer writes a correction.",
    code: { file: LLAMA, symbol: "Block.forward", marks: ["self.attention("] },
    question(trace) {
      const parts = tensorsOf(trace, "residual");
      const isLarger = size(parts.attention.numbers) > size(parts["x before"].numbers);
      return ofWords("Among the five numbers, which is larger in sum (without signs)?",
        ["the row before", "what attention adds"], isLarger ? 1 : 0);
    },
    after(trace) {
      const parts = tensorsOf(trace, "residual");
      return `${size(parts["x before"].numbers).toFixed(3)} before, ${size(parts.attention.numbers).toFixed(3)} added.`;
    },
  },
  {
    name: "swiglu",
    title: "SwiGLU",
    text: "Each token alone: a wide row in which a gate decides what passes, and a product back to the old width.",
    code: { file: "model/feed_forward.py", symbol: "FeedForward.forward", marks: ["self.activation("] },
    question(trace) {
      const open = tensorsOf(trace, "swiglu").gate.numbers.filter((one) => one > 0).length;
      return ofWords("How many of the five gates are open (positive)?", ["0 or 1", "2 or 3", "4 or 5"], open >> 1);
    },
    after(trace) {
      const { gate, down } = tensorsOf(trace, "swiglu");
      return `A row is ${gate.shape[1].toLocaleString("en-US")} numbers wide here, and ${down.shape[1]} outside.`;
    },
  },
  {
    name: "logits",
    title: "Logits",
    text: "After the last layer the row is multiplied by a row for each token of the vocabulary: the output head.",
    code: { file: LLAMA, symbol: "Llama.logits", marks: ["self.head()"] },
    question(trace) {
      const { logits, "norm(x)": normed } = tensorsOf(trace, "logits");
      const [count, width] = [logits.shape[1], normed.shape[1]];
      return ofNumbers("How many tokens get a score?", count, [width, trace.tokens.length, 4 * count]);
    },
    after(trace) {
      const logits = logitsOf(trace);
      return `The largest of ${logits.length.toLocaleString("en-US")} logits is ${place4(logits[largest(logits)])}.`;
    },
  },
  {
    name: "draw",
    title: "Draw",
    text: "Logits become probabilities, and a random number picks a token. It joins the text, and all begins again.",
    code: { file: "model/sampling/truncation.py", symbol: "kept_tokens", marks: ["top_k", "top_p", "min_p"] },
    question(trace) {
      const options = trace.likeliest.slice(0, 3).sort((a, b) => a.id - b.id);
      return ofWords("Which token is the likeliest to come next?", options.map(({ text }) => visible(text)),
        options.findIndex(({ id }) => id === trace.likeliest[0].id));
    },
    after: (trace) => `After ${quoted(trace.tokens[trace.position])}, at temperature 1:`,
  },
];
