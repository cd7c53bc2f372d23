// Explanations of what the engine view shows, each with its chapter of the guide and its place in the code.
import { address } from "../api.js";
import { element } from "../nodes.js";

const PAGING = "8. Paging";
const BATCHING = "9. Continuous batching";
const SHARING = "10. Sharing prefixes";
const CRASH = "18. When the engine crashes";

export const LESSONS = {
  free: {
    text: "A free block has no owner and no reusable text. Free blocks are allocated first.",
    chapter: PAGING,
    code: ["scheduler/block_pool.py", "allocate"],
  },
  cached: {
    text:
      "A cached block is free, but still holds the keys and values of a text. A request that begins with the " +
      "same text reuses it. When no other blocks are free, the least recently used one is overwritten.",
    chapter: SHARING,
    code: ["scheduler/block_pool.py", "lookup"],
  },
  used: {
    text:
      "A block holds the keys and values of consecutive tokens of one request. The blocks of a request can be " +
      "anywhere in the pool; its block table lists them.",
    chapter: PAGING,
    code: ["scheduler/block_manager.py", "extend"],
  },
  shared: {
    text:
      "Several requests use this block, because they begin with the same text. It was computed once. It becomes " +
      "free when the last of them releases it.",
    chapter: SHARING,
    code: ["scheduler/block_pool.py", "share"],
  },
  queued: {
    text:
      "The request waits. It joins when the batch, the token budget of a step and the pool have room for it. " +
      "Keys take turns; the next one is the key that was served the fewest tokens.",
    chapter: BATCHING,
    code: ["scheduler/waiting_queue.py", "line_up"],
  },
  prompt: {
    text:
      "The prompt is being computed, in chunks that fit the token budget of a step. The last chunk gives the " +
      "first token of the answer.",
    chapter: BATCHING,
    code: ["scheduler/prefill_budget.py", "prefill_budget"],
  },
  answer: {
    text:
      "The answer is being generated, one token in each step, or more if guesses were right. Only the last " +
      "token is computed; the keys and values of all earlier tokens are in the cache.",
    chapter: BATCHING,
    code: ["scheduler/engine.py", "step"],
  },
  preempted: {
    text:
      "The pool was full, so this request gave its blocks back and waits at the head of the queue. Its tokens " +
      "are kept and their keys and values are computed again; the answer does not change.",
    chapter: PAGING,
    code: ["scheduler/scheduler.py", "preempt"],
  },
  step: {
    text:
      "In one step, the model computes the next tokens of all running requests at the same time. Prompt tokens " +
      "make a step long; a step with answer tokens only is short.",
    chapter: BATCHING,
    code: ["scheduler/scheduler.py", "schedule"],
  },
  wait: {
    text: "The request stays in the queue for this reason. The event appears again when the reason changes.",
    chapter: BATCHING,
    code: ["scheduler/scheduler.py", "_join_waiting"],
  },
  join: {
    text:
      "The request left the queue and runs from this step on. Tokens found in the prefix cache are not computed " +
      "again.",
    chapter: SHARING,
    code: ["scheduler/block_manager.py", "attach"],
  },
  read: {
    text: "The beginning of this request was read from the spill file, where an earlier engine process left it.",
    chapter: SHARING,
    code: ["scheduler/prefix_reads.py", "PrefixReads"],
  },
  chunk: {
    text:
      "A chunk of the prompt was computed in this step. Long prompts are split, so that other requests go on " +
      "meanwhile.",
    chapter: BATCHING,
    code: ["scheduler/events.py", "compute"],
  },
  preempt: {
    text:
      "The pool was full. The request that joined last gave its blocks back and computes them again later; its " +
      "answer does not change.",
    chapter: PAGING,
    code: ["scheduler/scheduler.py", "preempt"],
  },
  restart: {
    text: "A new engine process continues every request after its last token. Streams go on.",
    chapter: CRASH,
    code: ["scheduler/process.py", "run_engine"],
  },
  evict: {
    text:
      "Cached blocks were overwritten, the least recently used first. A later request that begins with their " +
      "text computes it again.",
    chapter: SHARING,
    code: ["scheduler/block_pool.py", "allocate"],
  },
  abort: {
    text: "The request was stopped: by a stop string, or because its client disconnected. Its blocks are free.",
    chapter: PAGING,
    code: ["scheduler/scheduler.py", "abort"],
  },
  finish: {
    text:
      "The request has its last token, and its blocks are free. Their text stays reusable until they are " +
      "overwritten.",
    chapter: PAGING,
    code: ["scheduler/sequence.py", "finish_reason"],
  },
};

/** Return the anchor of a heading in the guide; the same function as in server/operations/guide.py. */
function anchor(heading) {
  return heading.toLowerCase().replace(/[^\w -]/g, "").replaceAll(" ", "-");
}

/** Return the nodes of a lesson: its text, then links to the chapter and to the code. */
export function lessonNodes(name) {
  const { text, chapter, code } = LESSONS[name];
  const [path, symbol] = code;
  const guide = `${address("web/llama2-from-scratch.html")}#${anchor(chapter)}`;
  const keyword = /^[A-Z]/.test(symbol) ? "class" : "def";
  const source = `${address(`web/code/${path}`)}#:~:text=${encodeURIComponent(`${keyword} ${symbol}`)}`;
  const outside = { target: "_blank", rel: "noopener" }; // this view goes on
  return [
    element("p", {}, text),
    element(
      "p",
      { class: "links" },
      element("a", { href: guide, ...outside }, `Chapter “${chapter}”`),
      element("a", { href: source, ...outside }, element("code", {}, `${symbol} in ${path}`)),
    ),
  ];
}
