// Why was it slow? The record that the server keeps of each request, as a bar.
import { milliseconds, phases, timingPart } from "../chat/timing_part.js";
import { button, element } from "../nodes.js";
import { slowBodies } from "./bodies.js";
import { EXAMPLES } from "./examples.js";
import { hashOfTokens } from "./fnv.js";
import { guessPart, verdict } from "./guess.js";
import { largest, ofWords } from "./questions.js";

const { scenarios: SCENARIOS, max_tokens: NUM_TOKENS } = EXAMPLES.slow;
const PHASES = ["waiting in the queue", "computing the prompt", "generating the answer"];

/** Show the lesson. */
export function show(root, { state, fetchJson, signal }) {
  const runs = []; // {name, repeats, hash} of the requests that were sent
  root.append(
    element("h2", {}, "Why was it slow?"),
    element(
      "p",
      {},
      `The same question three times, with ${NUM_TOKENS} tokens of answer each: alone, with a long text, and beside ` +
        "others. The server records when each request joined the batch, had its first token and ended.",
    ),
    ...SCENARIOS.map(scenario),
  );

  function scenario({ name, ...what }) {
    const node = element("section", { "aria-label": name });
    const open = ofWords("Where will most of its time go?", PHASES, -1);
    draw(undefined);
    return node;

    function draw(guess) {
      node.replaceChildren(element("h3", {}, name), guessPart(open, guess, run));
    }

    async function run(guess) {
      draw(guess);
      node.append(element("p", { role: "status" }, "The server answers …"));
      try {
        const { explanation, choices } = await answered(what);
        node.lastChild.remove();
        const hash = hashOfTokens(choices[0].token_ids);
        const words = compared(name, what.repeats, hash);
        node.append(...shown(guess, explanation), element("p", { class: "hash" }, ...words));
      } catch (error) {
        if (signal.aborted) return;
        node.lastChild.remove();
        node.append(
          element("p", { class: "failure" }, error.message),
          button("Try again", () => run(guess)),
        );
      }
    }
  }

  /** Return in words whether the same question had the same tokens in another run. */
  function compared(name, repeats, hash) {
    const other = runs.findLast((one) => one.repeats === repeats && one.name !== name);
    runs.push({ name, repeats, hash });
    const words = other && (other.hash === hash ? `equal to that ${other.name}` : `unlike that ${other.name}`);
    return ["The hash of its token ids is ", element("code", {}, hash), words ? `, ${words}.` : "."];
  }

  async function answered(what) {
    const { data } = await fetchJson("v1/models", { signal });
    const { mine, company } = slowBodies(data[0].id, state.text, what);
    const others = company && fetchJson("v1/completions", { body: company, signal });
    const asked = fetchJson("v1/completions", { body: mine, beside: what.others, signal });
    return (await Promise.all([asked, others]))[0];
  }
}

function shown(guess, explanation) {
  const times = phases(explanation.timeline).map(([, ms]) => ms);
  const most = largest(times);
  const total = times.reduce((sum, one) => sum + one, 0);
  const [{ steps, tokens, mean_batch: mean }] = explanation.choices;
  const answerMs = times[2];
  const words =
    `${PHASES[most]} took ${((100 * times[most]) / total).toFixed(0)} % of ${milliseconds(total)}. ` +
    `Its ${tokens} tokens took ${steps} steps, ${milliseconds(answerMs / Math.max(tokens - 1, 1))} a token after the ` +
    `first, with ${mean.toFixed(1)} requests in the batch on average.` +
    (steps < tokens ? " Fewer steps than tokens: the server guessed some tokens, and a step checked several." : "");
  const details = element("details", {}, element("summary", {}, "The bar and its events"), timingPart({ explanation }));
  details.open = true;
  return [verdict({ answer: most }, guess, words), details];
}
