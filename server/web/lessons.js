// What the things of the engine view mean, in two sentences each, and where the guide says more.

const GUIDE = "/web/llama2-from-scratch.html"; // docs/llama2-from-scratch.md

export const LESSONS = {
  free: ["A block nobody holds and that remembers nothing. It is given away first.", "8. Paging"],
  cached: [
    "A free block that still holds the keys and values of a prefix. A request that begins with the same text takes it up instead of computing it again; the least recently used goes first when room is needed.",
    "10. Sharing prefixes",
  ],
  used: [
    "A block of the KV pool: the keys and values of some consecutive tokens of one sequence. A sequence's blocks may lie anywhere; its block table says where.",
    "8. Paging",
  ],
  shared: [
    "A block that several sequences hold, because their texts begin alike. It was computed once and counts its holders; it is free again when the last one lets go.",
    "10. Sharing prefixes",
  ],
  prefill: [
    "A sequence whose prompt is being computed, in pieces that fit beside the others. Its first token comes when the last piece is done.",
    "9. Continuous batching",
  ],
  decode: [
    "A sequence that gets one token in each step. Its last token is the only row it adds to the batch; all before are in the KV cache.",
    "9. Continuous batching",
  ],
  waiting: [
    "A sequence in the queue. It joins when the batch, the step's budget and the pool have room for it; keys take turns.",
    "9. Continuous batching",
  ],
  wait: ["This sequence stays in the queue: others are before it, or the scheduler could not let it join, for the reason that is told. It is told once, until it changes.", "9. Continuous batching"],
  join: ["The sequence left the queue and runs from this step on. Tokens are those whose keys and values were found in the prefix cache.", "10. Sharing prefixes"],
  chunk: ["A piece of the prompt was computed in this step. Long prompts come in several, so that others go on meanwhile.", "9. Continuous batching"],
  preempt: [
    "The pool ran out of blocks, and the sequence that joined last gave its own back. It goes to the head of the queue and computes them again; its answer stays the same.",
    "8. Paging",
  ],
  restart: [
    "The engine process ended, and another one took its requests over behind the tokens they had. It computes their texts again, and no stream ends.",
    "9. Continuous batching",
  ],
  evict: [
    "A free block that still held a prefix was needed for something else. The least recently used go first; whoever comes with that prefix now computes it again.",
    "10. Sharing prefixes",
  ],
  abort: ["Nobody wants more of this sequence: a stop string was found, or the client left. Its blocks are free, as at any end.", "8. Paging"],
  finish: ["The sequence has its last token, and its blocks are free. What they hold can be found until they are used again.", "8. Paging"],
};

/** Return the name of a heading of the guide, as server/operations/guide.py makes it. */
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
  link.target = "_blank"; // the engine view goes on
  link.textContent = `Llama 2 from scratch, “${chapter}”`;
  where.append("More: ", link);
  document.getElementById("lesson").replaceChildren(line, where);
}
