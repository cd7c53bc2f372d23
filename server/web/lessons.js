// Explanations of the elements of the engine view, with links to the guide.

const GUIDE = "/web/llama2-from-scratch.html"; // docs/llama2-from-scratch.md

export const LESSONS = {
  free: ["A block without an owner and without a cached prefix. Free blocks are allocated first.", "8. Paging"],
  cached: [
    "A free block that still holds the keys and values of a prefix. A request with the same prefix reuses it instead of computing it again. When no other blocks are free, the least recently used one is evicted.",
    "10. Sharing prefixes",
  ],
  used: [
    "A block of the KV pool: the keys and values of consecutive tokens of one sequence. The blocks of a sequence can be anywhere in the pool; its block table has their positions.",
    "8. Paging",
  ],
  shared: [
    "A block that several sequences use, because they have the same prefix. It was computed once and has a reference count; it is free when the last sequence releases it.",
    "10. Sharing prefixes",
  ],
  prefill: [
    "A sequence whose prompt is being computed, in chunks that fit the step's token budget. Its first token is generated with the last chunk.",
    "9. Continuous batching",
  ],
  decode: [
    "A sequence that generates one token per step. Only its last token is computed in a step; the keys and values of all earlier tokens are in the KV cache.",
    "9. Continuous batching",
  ],
  waiting: [
    "A sequence in the queue. It joins the batch when the batch, the step's token budget and the pool have room for it. The next one is from the API key that was served the fewest tokens.",
    "9. Continuous batching",
  ],
  wait: ["The sequence stays in the queue, for the reason shown. The event is repeated only when the reason changes.", "9. Continuous batching"],
  join: ["The sequence left the queue and runs from this step on. The tokens shown were found in the prefix cache.", "10. Sharing prefixes"],
  chunk: ["A chunk of the prompt was computed in this step. Long prompts are split into chunks, so that other sequences continue meanwhile.", "9. Continuous batching"],
  preempt: [
    "The pool ran out of blocks, and the sequence that joined last released its own. It moves to the head of the queue and computes them again; its output does not change.",
    "8. Paging",
  ],
  restart: [
    "The engine process ended, and a new one resumes every request from its last generated token. Streams continue.",
    "9. Continuous batching",
  ],
  evict: [
    "A free block with a cached prefix was allocated for something else. The least recently used ones are evicted first; a later request with that prefix has to compute it again.",
    "10. Sharing prefixes",
  ],
  abort: ["The sequence was stopped by a stop string, or its client disconnected. Its blocks are free.", "8. Paging"],
  finish: ["The sequence generated its last token, and its blocks are free. Their prefixes stay in the cache until the blocks are allocated again.", "8. Paging"],
};

/** Return the anchor of a heading in the guide; the same function as in server/operations/guide.py. */
function anchor(heading) {
  return heading.toLowerCase().replace(/[^\w -]/g, "").replaceAll(" ", "-");
}

/** Show a lesson. */
export function teach(name) {
  const [text, chapter] = LESSONS[name];
  const line = document.createElement("p");
  line.textContent = `${text} `;
  const where = document.createElement("p");
  const link = document.createElement("a");
  link.href = `${GUIDE}#${anchor(chapter)}`;
  link.target = "_blank"; // the engine view continues
  link.textContent = `Llama 2 from scratch, “${chapter}”`;
  where.append("More: ", link);
  document.getElementById("lesson").replaceChildren(line, where);
}
