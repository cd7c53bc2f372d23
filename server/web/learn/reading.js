// Read the code: stops through the sources, in the order of a request.
import { button, element } from "../nodes.js";
import { codePart } from "./code_part.js";
import { guessPart, verdict } from "./guess.js";
import { fileQuestion, READING } from "./reading_stops.js";
import { stepLinks } from "./step_links.js";

/** Show a stop. */
export function show(root, { state, stop, draw, signal }) {
  const number = Math.min(Math.max(stop, 1), READING.length);
  const { does, text, code } = READING[number - 1];
  const question = fileQuestion(number - 1);
  const name = `code ${number}`;
  const guess = state.guesses.get(name);
  const titles = READING.map((one) => one.does);
  const reveal = (index) => (state.guesses.set(name, index), draw());
  root.append(
    stepLinks("code", titles, number),
    element("h2", {}, `${number}. ${does}`),
    guessPart(question, guess, reveal),
  );
  if (guess === undefined) root.append(button("Show it without a guess", () => reveal(null), { class: "quiet" }));
  else root.append(verdict(question, guess, `${code.file}.`), element("p", {}, text), codePart(code, signal));
  root.append(arrows(number));
}

function arrows(number) {
  const link = (to) => element("a", { href: `#learn/code/${to}` }, to < number ? "← Before" : "Next →");
  return element("p", { class: "arrows" }, number > 1 && link(number - 1), number < READING.length && link(number + 1));
}
