// The stops of "Read the code": what happens to a request, in order, and where.
export const READING = [
  {
    does: "The messages of a chat become one text",
    text: "A template of the model's maker does it, in a worker process with limits, since a template is a program.",
    code: { file: "server/sandbox/chat_template.py", symbol: "ChatTemplate.render", marks: ["self._render"] },
  },
  {
    does: "The text becomes token ids",
    text: "A vocabulary reads one piece after the other; special tokens in a user's text stay text.",
    code: { file: "model/tokenizer/tokenizer.py", symbol: "Tokenizer.encode", marks: ["self._vocabulary.encode"] },
  },
  {
    does: "A request is let in or refused, with a forecast of its wait",
    text: "The forecast adds up the work that is before it. A refusal names the time after which to try again.",
    code: { file: "server/generation/admission.py", symbol: "Admission.admit", marks: ["self._forecast_seconds"] },
  },
  {
    does: "The request is sent to the engine, and kept",
    text: "What is kept here survives the engine: its tokens so far, and the queue that its stream reads from.",
    code: { file: "server/engine/client.py", symbol: "EngineClient.submit", marks: ["self._requests.add"] },
  },
  {
    does: "It takes its turn among the requests that wait",
    text: "Keys with the fewest tokens served come first, so that no key can keep the others out.",
    code: { file: "scheduler/waiting_queue.py", symbol: "WaitingQueue.__iter__", marks: ["self._num_served"] },
  },
  {
    does: "A step is made: planned, computed, applied",
    text: "Three lines are the engine. All the rest is what they call.",
    code: { file: "scheduler/engine.py", symbol: "Engine.step", marks: ["schedule()", "self.run", "commit("] },
  },
  {
    does: "The tokens of a step are shared out",
    text: "Running sequences come first, oldest first; what is left of the budget lets waiting ones join.",
    code: { file: "scheduler/scheduler.py", symbol: "Scheduler.schedule", marks: ["budget -=", "_join_waiting"] },
  },
  {
    does: "Blocks with the same beginning are found",
    text: "A hash stands for a block and all before it. The first one that is unknown ends the search.",
    code: { file: "scheduler/block_manager.py", symbol: "BlockManager.find_prefix", marks: ["self.pool.lookup"] },
  },
  {
    does: "Free blocks are handed out",
    text: "The block that was free for the longest time goes first, with the prefix that it may hold.",
    code: { file: "scheduler/block_pool.py", symbol: "BlockPool.allocate", marks: ["popitem"] },
  },
  {
    does: "A sequence loses its blocks to an older one",
    text: "It goes back to the head of its queue and computes its tokens again: they are known, so that is fast.",
    code: { file: "scheduler/scheduler.py", symbol: "Scheduler.preempt", marks: ["put_back"] },
  },
  {
    does: "A token finds its place in the pool",
    text: "This line is paging: the block from the table, and the place in the block.",
    code: { file: "scheduler/batch.py", symbol: "slots", marks: ["block_tables[owners"] },
  },
  {
    does: "Queries, keys and values are computed",
    text: "One product gives all three. Keys and values go to the cache before the attention reads it.",
    code: { file: "model/llama.py", symbol: "Attention.forward", marks: ["self.qkv(x)"] },
  },
  {
    does: "Tokens look at the ones before them",
    text: "The plain attention, by which the kernels are tested.",
    code: { file: "model/attention/reference.py", symbol: "causal_attention", marks: ["masked_fill_"] },
  },
  {
    does: "A random number picks the token",
    text: "It depends on the seed and the position only, so the batch around it changes nothing.",
    code: { file: "model/sampling/sampler.py", symbol: "uniform", marks: ["_mix(seed)"] },
  },
  {
    does: "The step's tokens are added to their sequences",
    text: "Full blocks are cached, ended sequences give theirs back, and the output goes to the API process.",
    code: { file: "scheduler/scheduler.py", symbol: "Scheduler.commit", marks: ["self.apply"] },
  },
  {
    does: "Text is held back that may be a stop string",
    text: "Only what can no longer be the beginning of one is sent.",
    code: { file: "server/generation/stop_strings.py", symbol: "TextCutter.push", marks: ["num_safe"] },
  },
  {
    does: "Text becomes an event of the stream",
    text: "A line with data and an empty line: the browser can read the first token before the last exists.",
    code: { file: "server/http/sse.py", symbol: "event", marks: ["data: "] },
  },
  {
    does: "An engine has died and is replaced",
    text: "The standby takes over, or a new process loads the model; streams wait meanwhile.",
    code: { file: "server/engine/client.py", symbol: "EngineClient._restart_when_ended", marks: ["lose_engine"] },
  },
  {
    does: "A request goes on in another engine",
    text: "Its prompt and the tokens so far are computed again, and the next token is the one that was due.",
    code: { file: "server/engine/in_flight.py", symbol: "InFlightRequest.resumed", marks: ["output_token_ids"] },
  },
];

/** Return the question of a stop: its file, and two of other stops. */
export function fileQuestion(number) {
  const { does, code } = READING[number];
  const others = [...new Set(READING.map((one) => one.code.file))].filter((file) => file !== code.file);
  const first = (number * 3) % others.length;
  const options = [code.file, others[first], others[(first + 5) % others.length]].sort();
  return { ask: `${does}. Where?`, options, answer: options.indexOf(code.file) };
}
