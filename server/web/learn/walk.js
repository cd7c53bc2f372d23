// The walk: fourteen stops from a text to the next token. Each asks for a guess, then shows the numbers and the code.
import { button, element } from "../nodes.js";
import { codePart } from "./code_part.js";
import { guessPart } from "./guess.js";
import { stepLinks } from "./step_links.js";
import { STOPS } from "./stops.js";
import { tensorTable } from "./tensor_table.js";
import { tokenStrip, visible } from "./token_strip.js";

/** Show a stop of the walk. */
export function show(root, { state, stop, draw, signal }) {
  const number = Math.min(Math.max(stop, 1), STOPS.length);
  const { name, title, text, code, question, after } = STOPS[number - 1];
  const { trace, guesses } = state;
  const asked = question(trace);
  const { options, answer } = asked;
  const guess = guesses.get(name);
  root.append(
    stepLinks("walk", STOPS.map((one) => one.title), number),
    element("h2", {}, `${number}. ${title}`),
    element("p", {}, text),
    guessPart(asked, guess, reveal),
  );
  if (guess === undefined) {
    root.append(button("Show it without a guess", () => reveal(null), { class: "quiet" }), arrows(number));
    return;
  }
  root.append(
    element("p", { class: "verdict", role: "status" }, judged(guess)),
    element("p", {}, after(trace)),
    shown(name, trace),
    codePart(code, signal),
    arrows(number),
  );

  function reveal(index) {
    guesses.set(name, index);
    draw();
  }

  function judged(index) {
    if (index === null) return `It is: ${options[answer]}.`;
    return index === answer ? `Yes: ${options[answer]}.` : `No. It is: ${options[answer]}.`;
  }
}

function shown(name, trace) {
  const stop = trace.stops.find((one) => one.name === name);
  if (stop) return tensorTable(stop.tensors);
  if (name === "text") return element("blockquote", { class: "learn-text" }, trace.prompt);
  if (name === "template") return element("pre", {}, trace.prompt);
  if (name === "ids") return tokenStrip(trace.tokens, { hasIds: true });
  return element(
    "ol",
    { class: "likeliest" },
    trace.likeliest.slice(0, 5).map(({ text, probability }) =>
      element("li", {}, element("code", {}, visible(text)), ` ${(100 * probability).toFixed(2)} %`),
    ),
  );
}

function arrows(number) {
  const link = (to, words) => element("a", { href: `#learn/walk/${to}` }, words);
  return element(
    "p",
    { class: "arrows" },
    number > 1 && link(number - 1, `← ${STOPS[number - 2].title}`),
    number < STOPS.length && link(number + 1, `${STOPS[number].title} →`),
    number === STOPS.length && element("a", { href: "#learn/heads" }, "Heads →"),
  );
}
