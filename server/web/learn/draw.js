// The draw: the real distribution, what temperature, top_k, top_p and min_p leave of it, and the same seed in company.
import { element } from "../nodes.js";
import { probabilities, truncated } from "./distribution.js";
import { guessPart, verdict } from "./guess.js";
import { logitsOf, ofWords } from "./questions.js";
import { sameSeed } from "./same_seed.js";
import { visible } from "./token_strip.js";

const NUM_SHOWN = 20;
const SLIDERS = [
  { name: "temperature", label: "temperature", min: 0.1, max: 2, step: 0.1, value: 1 },
  { name: "topK", label: "top_k, 0 for all", min: 0, max: 50, step: 1, value: 0 },
  { name: "topP", label: "top_p", min: 0.05, max: 1, step: 0.05, value: 1 },
  { name: "minP", label: "min_p", min: 0, max: 0.5, step: 0.01, value: 0 },
];

/** Show the distribution of the next token. */
export function show(root, { state, draw, fetchJson, hasServer, signal }) {
  const { trace, guesses } = state;
  const logits = logitsOf(trace);
  const chosen = Object.fromEntries(SLIDERS.map(({ name, value }) => [name, value]));
  const guess = guesses.get("temperature");
  const [before, after] = [1, 2].map((temperature) => probabilities(logits, temperature)[trace.likeliest[0].id]);
  const question = ofWords(
    "What happens to the likeliest token at temperature 2 instead of 1?",
    ["It gets likelier", "It stays as likely", "It gets less likely"],
    after > before ? 0 : after === before ? 1 : 2,
  );
  root.append(
    element("h2", {}, "The draw"),
    element(
      "p",
      {},
      `These are the probabilities of all ${logits.length.toLocaleString("en-US")} tokens after your text, from the ` +
        "logits of the trace; the first ones are shown.",
    ),
    guessPart(question, guess, (index) => (guesses.set("temperature", index), draw())),
  );
  if (guess === undefined) return;
  const bars = element("ol", { class: "bars" });
  const summary = element("p", { role: "status" });
  root.append(
    verdict(
      question,
      guess,
      `${percent(before)} at temperature 1, ${percent(after)} at 2. The logits are divided by the temperature.`,
    ),
    element("div", { class: "fields" }, SLIDERS.map(slider)),
    summary,
    bars,
    sameSeed({ trace, chosen, fetchJson, hasServer, signal }),
  );
  update();

  function slider({ name, label, min, max, step, value }) {
    const range = element("input", { type: "range", min, max, step, value, "aria-label": label });
    const number = element("input", { type: "number", min, max, step, value, "aria-label": `${label}, as a number` });
    range.addEventListener("input", () => set(range, number));
    number.addEventListener("change", () => number.checkValidity() && set(number, range));
    return element("label", {}, label, range, number);

    function set(from, to) {
      to.value = from.value;
      chosen[name] = Number(from.value);
      update();
    }
  }

  function update() {
    const all = probabilities(logits, chosen.temperature);
    const left = truncated(all, chosen);
    const count = left.reduce((sum, one) => sum + (one > 0 ? 1 : 0), 0);
    summary.textContent = `${count.toLocaleString("en-US")} tokens can be drawn.`;
    bars.replaceChildren(...trace.likeliest.slice(0, NUM_SHOWN).map(({ id, text }) => {
      const share = left[id];
      const bar = element("span", { class: "bar-of", "aria-hidden": "true" });
      bar.style.setProperty("--share", share.toFixed(4));
      return element("li", { class: share > 0 ? null : "left-out" },
        element("code", {}, visible(text)),
        bar,
        element("span", { class: "number" }, share > 0 ? percent(share) : "left out"));
    }));
  }
}

const percent = (share) => `${(100 * share).toFixed(2)} %`;
