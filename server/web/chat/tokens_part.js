// The tokens of an answer: how surprising each was, and what else could have stood there.
import { element } from "../nodes.js";

const LEVELS = [0.9, 0.6, 0.3, 0.1]; // least probability of each shade; below the last one is the darkest

const probability = (one) => Math.exp(one.logprob);
const percent = (one) => `${(100 * probability(one)).toFixed(1)} %`;

/** Return the shade of a token, from 0, expected, to 4, unexpected. */
export function surprise(token) {
  const level = LEVELS.findIndex((least) => probability(token) >= least);
  return level < 0 ? LEVELS.length : level;
}

/** Return the node. One token at a time can be reached by Tab; the arrow keys go on from it. */
export function tokensPart(message) {
  const tokens = message.tokens ?? [];
  if (!tokens.length) return element("p", { class: "meta" }, "This answer has no recorded tokens.");
  const details = element("div", { class: "token-details", role: "status", id: "token-details" });
  const nodes = tokens.map((token) =>
    element("span", { class: `token surprise-${surprise(token)}`, role: "option", tabindex: "-1" }, token.token),
  );
  const named = { role: "listbox", "aria-label": "Tokens", "aria-orientation": "horizontal" };
  const list = element("div", { class: "tokens", ...named }, ...nodes);
  let chosen = 0;

  function choose(index) {
    nodes[chosen].tabIndex = -1;
    nodes[chosen].setAttribute("aria-selected", "false");
    chosen = index;
    nodes[chosen].tabIndex = 0;
    nodes[chosen].setAttribute("aria-selected", "true");
    details.replaceChildren(...detailsOf(tokens[index], index));
  }

  for (const kind of ["mouseover", "focusin", "click"])
    list.addEventListener(kind, ({ target }) => {
      const index = nodes.indexOf(target);
      if (index >= 0) choose(index);
    });
  list.addEventListener("keydown", (event) => {
    const next = { ArrowRight: chosen + 1, ArrowLeft: chosen - 1, Home: 0, End: nodes.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    nodes[Math.min(Math.max(next, 0), nodes.length - 1)].focus();
  });
  choose(0);
  return element("div", {}, legend(), details, list);
}

function legend() {
  const texts = ["over 90 %", "over 60 %", "over 30 %", "over 10 %", "below"];
  const shades = texts.map((text, level) =>
    element("li", {}, element("span", { class: `shade-box surprise-${level}` }), text),
  );
  const title = element("p", { class: "meta" }, "Probability of each token:");
  return element("div", {}, title, element("ul", { class: "legend" }, ...shades));
}

function detailsOf(token, index) {
  const others = token.top.some((one) => one.token === token.token) ? token.top : [token, ...token.top];
  const rows = others.map((one) => {
    const bar = element("meter", { min: "0", max: "1", value: probability(one), "aria-hidden": "true" });
    const isChosen = one.token === token.token;
    const mark = isChosen ? element("span", { class: "for-readers" }, " (chosen)") : null;
    return element(
      "tr",
      { class: isChosen ? "chosen" : null },
      element("td", {}, element("code", {}, JSON.stringify(one.token)), mark),
      element("td", { class: "number" }, percent(one)),
      element("td", {}, bar),
    );
  });
  const code = element("code", {}, JSON.stringify(token.token));
  const caption = element("caption", { class: "for-readers" }, "Alternatives");
  return [
    element("p", {}, `Token ${index + 1}: `, code, `, probability ${percent(token)}`),
    element("table", {}, caption, element("tbody", {}, ...rows)),
  ];
}
