// The same request with the same seed, alone and beside others: two answers of the server, compared by their hashes.
import { button, element } from "../nodes.js";
import { seedBodies } from "./bodies.js";
import { EXAMPLES } from "./examples.js";
import { hashOfTokens } from "./fnv.js";

const { max_tokens: NUM_TOKENS, others: NUM_OTHERS, seed: SEED, sampling: RECORDED } = EXAMPLES.same_seed;

/** Return the part that sends the requests. `chosen` has the sampling of the sliders; without a server it is fixed. */
export function sameSeed({ trace, chosen, fetchJson, hasServer, signal }) {
  const attributes = { type: "number", min: 0, step: 1, value: SEED, readonly: !hasServer, "aria-label": "seed" };
  const seed = element("input", attributes);
  const result = element("div", { role: "status" });
  const press = button(`Draw ${NUM_TOKENS} tokens twice`, run);
  const sampling = hasServer ? "the sampling above" : "temperature 1";
  return element("section", {},
    element("h3", {}, "The same seed, alone and in company"),
    element("p", {}, `The server answers your text with ${sampling} and this seed: first alone, then in one ` +
      `batch with ${NUM_OTHERS} other requests. Do you expect the same tokens?`),
    element("div", { class: "fields" }, element("label", {}, "seed", seed), press),
    result);

  async function run() {
    if (!seed.checkValidity() || seed.value === "") return;
    press.disabled = true;
    result.replaceChildren("The server answers …");
    try {
      const { mine, company } = seedBodies(trace, hasServer ? fieldsOf(chosen) : RECORDED, Number(seed.value));
      const alone = await fetchJson("v1/completions", { body: mine, signal });
      const others = fetchJson("v1/completions", { body: company, signal });
      const crowded = fetchJson("v1/completions", { body: mine, beside: NUM_OTHERS, signal });
      result.replaceChildren(compared(alone, (await Promise.all([crowded, others]))[0]));
    } catch (error) {
      if (!signal.aborted) result.replaceChildren(element("p", { class: "failure" }, error.message));
    } finally {
      press.disabled = false;
    }
  }
}

const fieldsOf = ({ temperature, topK, topP, minP }) => ({ temperature, top_k: topK, top_p: topP, min_p: minP });

function compared(alone, crowded) {
  const rows = [["alone", alone], ["in company", crowded]].map(([name, { choices: [choice], explanation }]) =>
    element("tr", {},
      element("th", { scope: "row" }, name),
      element("td", { class: "number" }, String(explanation.choices[0].largest_batch)),
      element("td", {}, element("code", {}, hashOfTokens(choice.token_ids))),
      element("td", {}, choice.text)));
  const isSame = hashOfTokens(alone.choices[0].token_ids) === hashOfTokens(crowded.choices[0].token_ids);
  return element("div", { class: "scroller" },
    element("p", { class: "verdict" }, isSame ? "The two hashes are equal." : "The two hashes differ."),
    element("table", { class: "runs" },
      element("thead", {}, element("tr", {},
        ["request", "largest batch", "hash of the token ids", "answer"].map((name) =>
        element("th", { scope: "col" }, name)))),
      element("tbody", {}, rows)));
}
