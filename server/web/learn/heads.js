// Heads: what every head of every layer looks at, and the weights of one of them as a map with words.
import { element } from "../nodes.js";
import { guessPart, verdict } from "./guess.js";
import { habitOf, HABITS } from "./habits.js";
import { ofNumbers, weightsAt } from "./questions.js";
import { visible } from "./token_strip.js";

/** Show the heads of the model. */
export function show(root, { state, ask, draw }) {
  const { trace, guesses } = state;
  const habits = trace.habits.map((heads) => heads.map(habitOf));
  const count = habits.flat().filter((one) => one === "first").length;
  const total = trace.num_layers * trace.num_heads;
  const question = ofNumbers(
    `Of the ${total} heads, how many give the first token more than half of their attention?`,
    count,
    [Math.round(total / 10), Math.round(total / 2), total].filter((one) => Math.abs(one - count) > total / 20),
  );
  const guess = guesses.get("heads");
  root.append(
    element("h2", {}, "What the heads look at"),
    element("p", {}, "Every head of every layer looks back in its own way. A head gets a letter if one kind " +
      "of token has more than half of its attention."),
    guessPart(question, guess, (index) => (guesses.set("heads", index), draw())),
  );
  if (guess === undefined) return;
  root.append(
    verdict(
      question,
      guess,
      `${count} of ${total}. Softmax has to give its weight to some token, and a head with nothing to say gives it ` +
        "to the first one, which every token can see.",
    ),
    legend(habits),
    overview(habits),
    element("h3", {}, `Layer ${trace.layer}, head ${trace.head}`),
    element("p", {}, shared(trace)),
    map(trace),
  );

  function overview(names) {
    const press = (layer, head) => ask({ layer, head });
    const table = element(
      "table",
      { class: "map heads", onkeydown: move },
      element("thead", {}, element("tr", {}, element("th", {}),
        names[0].map((_, head) => element("th", { scope: "col" }, `head ${head}`)))),
      element("tbody", {}, names.map((heads, layer) =>
        element("tr", {}, element("th", { scope: "row" }, `layer ${layer}`),
          heads.map((name, head) => cell(name, layer, head))))),
    );
    return element("div", { class: "scroller" }, table);

    function cell(name, layer, head) {
      const isShown = layer === trace.layer && head === trace.head;
      const { mark, words } = HABITS[name];
      const made = element("button", {
        type: "button",
        tabindex: isShown ? "0" : "-1",
        "aria-pressed": String(isShown),
        "aria-label": `layer ${layer}, head ${head}: ${words}`,
        class: "heat",
        onclick: () => press(layer, head),
      }, mark);
      const shares = trace.habits[layer][head].map((one) => one ?? 0);
      made.style.setProperty("--share", (Math.max(...shares) * 0.7).toFixed(3));
      return element("td", {}, made);
    }
  }
}

/** Move the focus between the buttons of a table with the arrow keys. */
function move(event) {
  const [down, right] =
    { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
  if (down === undefined) return;
  const cell = event.target.closest("td");
  const row = event.currentTarget.tBodies[0].rows[cell.parentNode.sectionRowIndex + down];
  const next = row?.cells[cell.cellIndex + right]?.querySelector("button");
  if (!next) return;
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/** Return what the letters of the map mean, and how many heads have each. */
function legend(habits) {
  const all = habits.flat();
  const entry = ([name, { mark, words }]) => {
    const count = all.filter((one) => one === name).length;
    return element("li", {}, element("span", { class: "legend-mark" }, mark), `${words}: ${count} heads`);
  };
  return element(
    "div",
    {},
    element("p", {}, "More than half of a head's attention goes to …"),
    element("ul", { class: "legend" }, Object.entries(HABITS).map(entry)),
    element("p", { class: "meta" }, "The darker a square, the larger the share. Press one to see its weights below."),
  );
}

function shared({ head, num_heads: heads, num_kv_heads: kvHeads, habits, layer }) {
  const group = heads / kvHeads;
  const first = Math.floor(head / group) * group;
  const names = Array.from({ length: group }, (_, index) => first + index);
  const sharing = group === 1
    ? "It has a KV head of its own."
    : `Query heads ${names.join(", ")} read the same keys and values, of KV head ${first / group}.`;
  const [toFirst, toPrevious, toSame] = habits[layer][head].map((one) =>
    one === null ? "none" : `${(100 * one).toFixed(0)} %`);
  return `${sharing} On average it gives ${toFirst} to the first token, ${toPrevious} to the previous one and ` +
    `${toSame} to earlier ones that are the same.`;
}

/** Return the weights of the shown head: a row for each token, a column for each token it can look at. */
function map(trace) {
  const words = trace.tokens.map(({ text }) => visible(text));
  const table = element(
    "table",
    { class: "map" },
    element(
      "caption",
      { class: "meta" },
      "Each row is a token; its cells say where it looks. Point at a cell for its weight.",
    ),
    element("thead", {}, element("tr", {}, element("th", {}),
      words.map((word) => element("th", { scope: "col" }, word)))),
    element("tbody", {}, words.map((word, position) => {
      const weights = weightsAt(trace, trace.head, position);
      return element("tr", {}, element("th", { scope: "row" }, word), weights.map((weight, key) => {
        if (key > position) return element("td", {});
        const percent = `${(100 * weight).toFixed(0)} %`;
        const made = element("td", { class: "heat", title: `${word} looks at ${words[key]}: ${percent}` },
          element("span", { class: "for-readers" }, percent));
        made.style.setProperty("--share", weight.toFixed(3));
        return made;
      }));
    })),
  );
  return element("div", { class: "scroller", tabindex: "0", role: "group", "aria-label": "Weights of the head" },
    table);
}
