// Batching: the real scheduler without a model, as it is beside as it might be.
import { milliseconds } from "../chat/timing_part.js";
import { button, element } from "../nodes.js";
import { batchingBody } from "./bodies.js";
import { EXAMPLES } from "./examples.js";
import { gantt, ganttLegend } from "./gantt.js";
import { guessPart, verdict } from "./guess.js";
import { ofNumbers } from "./questions.js";
import { choiceSlider } from "./sliders.js";
import { spansOf, summaryOf } from "./spans.js";
import { measureCost } from "./step_cost.js";

const { choices: CHOICES, chosen: CHOSEN, requests: REQUESTS } = EXAMPLES.batching;
const LABELS = {
  max_num_seqs: "requests in a batch",
  max_batch_tokens: "tokens in a step",
  every: "steps between two arrivals",
  max_inter_token_ms: "target for a step, ms",
};

/** Show the lesson. */
export function show(root, { state, fetchJson, hasServer, signal }) {
  const kept = (state.batching ??= {
    cost: { step_ms: EXAMPLES.batching.step_ms, token_ms: EXAMPLES.batching.token_ms },
    is: { chosen: CHOSEN, waitsForAll: false },
    ifs: { chosen: { ...CHOSEN }, waitsForAll: true },
  });
  const failure = element("p", { class: "failure", role: "alert" });
  const question = element("div", {}, "The scheduler runs …");
  const result = element("div", {});
  const simulate = ({ chosen, waitsForAll }) =>
    fetchJson("v1/learn/simulate", { body: batchingBody(chosen, kept.cost, waitsForAll), signal });
  const total = REQUESTS.reduce((sum, [, length]) => sum + length, 0);
  root.append(
    element("h2", {}, "Batching"),
    element(
      "p",
      {},
      `${REQUESTS.length} requests want ${total} tokens together; request 5 has a prompt of ${REQUESTS[4][0]}. ` +
        "The scheduler of this server decides in each step which of them compute. No model runs: a step is taken to " +
        "last a time of its own and a time for each of its tokens, which you can set.",
    ),
    failure,
    question,
    result,
  );
  attempt(askFirst);

  async function attempt(what) {
    failure.textContent = "";
    try {
      await what();
    } catch (error) {
      if (!signal.aborted) failure.textContent = error.message;
    }
  }

  async function askFirst() {
    const [waves, continuous] = await Promise.all(
      [true, false].map((waitsForAll) => simulate({ chosen: CHOSEN, waitsForAll })),
    );
    const [before, after] = [waves.steps.length, continuous.steps.length];
    const asked = ofNumbers(
      `In batches of ${CHOSEN.max_num_seqs}, each ended before the next one starts, they take ${before} steps. How ` +
        "many if a new request joins as soon as another one ends?",
      after,
      [before, Math.ceil(before * 0.9), Math.ceil(before / 2)],
    );
    draw();

    function draw() {
      const guess = state.guesses.get("batching");
      question.replaceChildren(
        guessPart(asked, guess, (index) => (state.guesses.set("batching", index), draw())),
      );
      if (guess === undefined) return;
      const words = `${after} steps instead of ${before}: no place in the batch is empty while a request waits.`;
      question.append(verdict(asked, guess, words));
      explore();
    }
  }

  function explore() {
    const shown = element("div", { class: "beside" });
    const cost = element("div", { class: "fields" }, costField("step_ms"), costField("token_ms"));
    if (hasServer) cost.append(button("Measure them on this server", () => attempt(measure)));
    result.replaceChildren(
      element("h3", {}, "What if"),
      element("p", {}, "Which slider shortens the longest pause of a stream, and what does that cost?"),
      element(
        "div",
        { class: "fields" },
        Object.entries(CHOICES).map(([name, values]) => {
          const set = (value) => ((kept.ifs.chosen[name] = value), attempt(update));
          return choiceSlider(LABELS[name], values, kept.ifs.chosen[name], set, (one) => String(one ?? "none"));
        }),
        waves(),
        button("Keep this on the left", () => {
          kept.is = { chosen: { ...kept.ifs.chosen }, waitsForAll: kept.ifs.waitsForAll };
          attempt(update);
        }),
      ),
      cost,
      ganttLegend(),
      shown,
    );
    let latest = 0;
    attempt(update);

    async function update() {
      const number = ++latest;
      const both = await Promise.all([kept.is, kept.ifs].map(simulate));
      if (signal.aborted || number !== latest) return;
      const lives = both.map((one, index) => spansOf(one, arrivals([kept.is, kept.ifs][index])));
      const end = Math.max(...both.map(({ steps }) => steps.at(-1).end_ms));
      shown.replaceChildren(
        panel("As it is", kept.is, both[0], lives[0], end),
        panel("What if", kept.ifs, both[1], lives[1], end),
      );
    }

    async function measure() {
      kept.cost = await measureCost({ fetchJson, signal });
      explore();
    }

    function waves() {
      const box = element("input", {
        type: "checkbox",
        checked: kept.ifs.waitsForAll,
        onchange: () => ((kept.ifs.waitsForAll = box.checked), attempt(update)),
      });
      return element("label", { class: "checked" }, box, " a batch ends before the next one starts");
    }

    function costField(name) {
      const label = name === "step_ms" ? "ms of a step" : "ms of each token";
      const input = element("input", {
        type: "number",
        min: "0.001",
        max: name === "step_ms" ? "1000" : "100",
        step: "any",
        value: kept.cost[name],
        disabled: !hasServer,
        onchange() {
          if (!input.checkValidity() || input.value === "") return;
          kept.cost = { ...kept.cost, [name]: Number(input.value) };
          attempt(update);
        },
      });
      return element("label", {}, label, input);
    }
  }
}

const arrivals = ({ chosen }) => REQUESTS.map((_, index) => index * chosen.every);

function panel(title, { chosen, waitsForAll }, simulation, lives, end) {
  const { steps, total, tokensASecond, meanFirst, longestPause } = summaryOf(simulation, lives);
  const facts = [
    ["steps", String(steps)],
    ["all done after", milliseconds(total)],
    ["tokens a second", tokensASecond.toFixed(0)],
    ["to the first token, on average", milliseconds(meanFirst)],
    ["longest pause of a stream", milliseconds(longestPause)],
  ];
  const settings = Object.entries(chosen).map(([name, value]) => `${LABELS[name]}: ${value ?? "none"}`);
  return element(
    "section",
    { "aria-label": title },
    element("h3", {}, title),
    element("p", { class: "meta" }, [...settings, waitsForAll ? "batch by batch" : "continuous"].join("; ")),
    gantt(lives, end),
    element("table", {}, element("tbody", {}, facts.map(([name, value]) =>
      element("tr", {}, element("th", { scope: "row" }, name), element("td", { class: "number" }, value))))),
  );
}
