// The question that every lesson asks before it shows anything.
import { button, element } from "../nodes.js";

/**
 * Return the question as a group of buttons.
 *
 * `made` is the index of the guess, null if the reader wanted none, undefined before; `onGuess` gets the index pressed.
 */
export function guessPart({ ask, options, answer }, made, onGuess) {
  const choice = (option, index) =>
    button(option, () => onGuess(index), {
      "aria-pressed": String(made === index),
      class: made !== undefined && index === answer ? "right" : null,
      disabled: made !== undefined,
    });
  return element("fieldset", { class: "guess" }, element("legend", {}, ask), options.map(choice));
}

/** Return the paragraph that says whether the guess was right, and then `words`. */
export function verdict({ answer }, made, words) {
  const isRight = made === answer ? "Yes: " : "No: ";
  return element("p", { class: "verdict", role: "status" }, made === null ? words : isRight + words);
}
