// Questions of the stops: their options and answers are computed from the trace.

/** Return a question whose answer is a number: other numbers are options too, each once, in order. */
export function ofNumbers(ask, answer, others) {
  const numbers = [...new Set([answer, ...others])].filter((one) => one > 0 || one === answer).sort((a, b) => a - b);
  return { ask, options: numbers.map((one) => one.toLocaleString("en-US")), answer: numbers.indexOf(answer) };
}

/** Return a question between words. */
export const ofWords = (ask, options, answer) => ({ ask, options, answer });

/** Return the tensors of a stop by their names. */
export function tensorsOf(trace, stop) {
  const { tensors } = trace.stops.find((one) => one.name === stop);
  return Object.fromEntries(tensors.map((one) => [one.name, one]));
}

/** Return the attention weights of one head at one token, one for each token, from 0 to 1. */
export function weightsAt(trace, head, position) {
  const count = trace.tokens.length;
  const bytes = bytesOf(trace.attention);
  const start = (head * count + position) * count;
  return Array.from(bytes.subarray(start, start + count), (byte) => byte / 255);
}

/** Return the bytes of a text in base64. */
export const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

/** Return the logits of a trace. */
export const logitsOf = (trace) => new Float32Array(bytesOf(trace.logits).buffer);

/** Return the place of the largest number. */
export const largest = (numbers) => numbers.reduce((best, one, index) => (one > numbers[best] ? index : best), 0);
