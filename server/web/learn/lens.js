// The logit lens: the likeliest next tokens if the model ended after each layer.
import { element } from "../nodes.js";
import { guessPart, verdict } from "./guess.js";
import { ofWords } from "./questions.js";
import { visible } from "./token_strip.js";

/** Return the first layer from which on the likeliest token is the one of the end. */
export function decidedAfter(lens) {
  const last = lens.at(-1)[0].id;
  let layer = lens.length - 1;
  while (layer > 0 && lens[layer - 1][0].id === last) layer--;
  return layer;
}

/** Show the likeliest tokens after each layer. */
export function show(root, { state, draw }) {
  const { trace, guesses } = state;
  const { lens } = trace;
  const decided = decidedAfter(lens);
  const third = Math.ceil(lens.length / 3);
  const question = ofWords(
    `In which of the ${lens.length} layers is the likeliest token settled?`,
    ["in the first third", "in the second third", "in the last third"],
    Math.floor(decided / third),
  );
  const guess = guesses.get("lens");
  root.append(
    element("h2", {}, "Layer by layer"),
    element(
      "p",
      {},
      "Each layer adds to the row of the last token. Read after any layer as if it were the last, the row names a " +
        "next token already. The last norm and the output head do the reading. A · stands for a space.",
    ),
    guessPart(question, guess, (index) => (guesses.set("lens", index), draw())),
  );
  if (guess === undefined) return;
  root.append(
    verdict(question, guess, `from layer ${decided} on, counted from 0, it is “${visible(lens.at(-1)[0].text)}”.`),
    element("div", { class: "scroller", tabindex: "0", role: "group", "aria-label": "Likeliest tokens of each layer" },
      element("table", { class: "map lens" },
        element("thead", {}, element("tr", {},
          ["after layer", "first", "second", "third", "fourth", "fifth"].map((name) =>
          element("th", { scope: "col" }, name)))),
        element("tbody", {}, lens.map(row)))),
  );
}

function row(words, layer) {
  return element("tr", {}, element("th", { scope: "row" }, String(layer)), words.map(({ text, probability }) => {
    const made = element("td", { class: "heat word" },
      `${visible(text)} `, element("span", { class: "meta" }, `${(100 * probability).toFixed(1)} %`));
    made.style.setProperty("--share", (0.6 * probability).toFixed(3));
    return made;
  }));
}
