// Paging: the reader's requests as words in blocks, on the real scheduler and block manager.
import { button, element } from "../nodes.js";
import { blocksIn, costOf, fullestStep, prefixTree } from "./block_contents.js";
import { numBlocksOf, pagingBody, tokenizeBody } from "./bodies.js";
import { EXAMPLES } from "./examples.js";
import { guessPart, verdict } from "./guess.js";
import { choiceSlider, slider } from "./sliders.js";
import { ofNumbers } from "./questions.js";
import { visible } from "./token_strip.js";

const MAX_LINES = 8;
const { block_sizes: SIZES, pools: POOLS, max_tokens: NEW_TOKENS } = EXAMPLES.paging;

/** Show the lesson. */
export function show(root, { state, fetchJson, hasServer, signal }) {
  const kept = (state.paging ??= { lines: EXAMPLES.paging.lines.join("\n"), chosen: null });
  kept.chosen ??= { blockSize: EXAMPLES.paging.block_size, pool: EXAMPLES.paging.pool };
  const lines = element("textarea", { id: "learn-lines", rows: "4", maxlength: "2000", readonly: !hasServer });
  lines.value = kept.lines;
  const failure = element("p", { class: "failure", role: "alert" });
  const question = element("div", {});
  const result = element("div", {});
  let guess; // index of the answer, undefined before
  root.append(
    element("h2", {}, "Paging"),
    element(
      "p",
      {},
      "Keys and values of all requests lie in one pool of blocks of equal size. A block table says which blocks a " +
        "request has, and requests that begin with the same words share blocks. These are your requests, run by the " +
        "scheduler of this server without its model.",
    ),
    element(
      "form",
      { class: "learn-form", onsubmit: (event) => (event.preventDefault(), cut()) },
      element("label", { for: "learn-lines" }, `Requests, one a line, at most ${MAX_LINES}`),
      lines,
      element("div", { class: "learn-row" }, element("button", { class: "primary" }, "Cut into blocks")),
    ),
    failure,
    question,
    result,
  );

  async function cut() {
    kept.lines = lines.value;
    failure.textContent = "";
    guess = undefined;
    question.replaceChildren();
    result.replaceChildren();
    try {
      const texts = lines.value.split("\n").map((line) => line.trim()).filter(Boolean);
      if (!texts.length) throw new Error("Write at least one request.");
      if (texts.length > MAX_LINES) {
        throw new Error(`These are ${texts.length} requests, and ${MAX_LINES} is the limit.`);
      }
      const found = await Promise.all(texts.map((line) => fetchJson("tokenize", { body: tokenizeBody(line), signal })));
      const requests = found.map(({ tokens, pieces }) => {
        return { tokens, words: pieces.map(wordOf), maxTokens: NEW_TOKENS };
      });
      askFirst(requests, await simulate(requests, kept.chosen));
    } catch (error) {
      if (!signal.aborted) failure.textContent = error.message;
    }
  }

  function simulate(requests, chosen) {
    const body = pagingBody(requests.map(({ tokens }) => tokens), chosen);
    return fetchJson("v1/learn/simulate", { body, signal });
  }

  function askFirst(requests, simulation) {
    const { blockSize } = kept.chosen;
    const { shared, blocks, entries } = costOf(simulation.steps[fullestStep(simulation.steps)], requests, blockSize);
    const asked = ofNumbers(
      `${requests.length} requests, ${blockSize} tokens in a block. How many blocks will belong to several requests?`,
      shared,
      [0, 1, Math.ceil(blocks / 2), entries],
    );
    const draw = () => {
      question.replaceChildren(guessPart(asked, guess, (index) => ((guess = index), draw())));
      if (guess === undefined) return;
      const words =
        `${shared} of the ${blocks} blocks in use. The tables have ${entries} entries together, so sharing saves ` +
        `${entries - blocks} blocks.`;
      question.append(verdict(asked, guess, words));
      explore(requests);
    };
    draw();
  }

  function explore(requests) {
    const shown = element("div", {});
    const set = (name) => (value) => {
      kept.chosen[name] = value;
      update();
    };
    result.replaceChildren(
      element(
        "div",
        { class: "fields" },
        choiceSlider("tokens in a block", SIZES, kept.chosen.blockSize, set("blockSize")),
        choiceSlider("tokens in the pool", POOLS, kept.chosen.pool, set("pool")),
      ),
      shown,
    );
    let latest = 0;
    update();

    async function update() {
      const number = ++latest;
      try {
        const all = await Promise.all(SIZES.map((blockSize) => simulate(requests, { ...kept.chosen, blockSize })));
        if (signal.aborted || number !== latest) return;
        failure.textContent = "";
        const { blockSize } = kept.chosen;
        const simulation = all[SIZES.indexOf(blockSize)];
        shown.replaceChildren(
          pool(simulation, requests, kept.chosen),
          sizesTable(all, requests, blockSize),
          element("h3", {}, "The tree of prefixes"),
          element("p", {}, "Each full block of a prompt has a hash of its tokens and of the hash before it. Equal " +
            "hashes mean equal texts from the beginning: there the block is shared. A request whose prefix is just " +
            "being computed for another one waits a step for it."),
          tree(prefixTree(simulation.requests.map((one) => one.block_hashes), requests, blockSize)),
        );
      } catch (error) {
        if (!signal.aborted) failure.textContent = error.message;
      }
    }
  }
}

const wordOf = ({ bytes }) => visible(new TextDecoder().decode(Uint8Array.from(bytes)));

/** Return the pool, block by block, with a slider for the step. */
function pool({ steps, requests: ends }, requests, { blockSize, pool: numTokens }) {
  const numBlocks = numBlocksOf(numTokens, blockSize);
  const cells = element("ol", { class: "pool-blocks", start: "0" });
  const facts = element("p", { role: "status" });
  const atStep = slider("step", { min: 0, max: steps.length - 1, step: 1, value: fullestStep(steps) }, draw);
  const preempted = steps.filter((step) => step.preempted.length).length;
  const jump = preempted > 0 && button("To the next preemption", next);
  draw(fullestStep(steps));
  return element(
    "div",
    {},
    element("h3", {}, "The pool"),
    element("div", { class: "fields" }, atStep.node, jump),
    facts,
    cells,
    element("ul", { class: "meta" }, ends.map(story)),
  );

  function next() {
    const after = steps.findIndex((step, index) => index > atStep.value() && step.preempted.length);
    atStep.set(after >= 0 ? after : steps.findIndex((step) => step.preempted.length));
  }

  function draw(index) {
    const step = steps[index];
    const blocks = blocksIn(step, requests, blockSize);
    const { empty, entries } = costOf(step, requests, blockSize);
    const names = (list) => list.map((one) => one + 1).join(", ");
    facts.textContent =
      `${step.num_used_blocks} of ${numBlocks} blocks in use; ` +
      `of the free ones ${step.num_cached_blocks} still hold a prefix. ` +
      `${empty} of ${blocks.size * blockSize} places are empty; ${entries} entries in the tables.` +
      (step.waiting.length ? ` Waiting: request ${names(step.waiting)}.` : "") +
      (step.preempted.length ? ` Preempted to make room: request ${names(step.preempted)}.` : "");
    const numbers = [...blocks.keys()].sort((a, b) => a - b);
    cells.replaceChildren(...numbers.map((block) => cell(block, blocks.get(block), names)));
  }
}

function story({ joined, finished, num_cached_tokens: cached, num_preemptions: count }, index) {
  const words = `Request ${index + 1}: steps ${joined} to ${finished}, ${cached} tokens found in the cache`;
  return element("li", {}, count ? `${words}, preempted ${count === 1 ? "once" : `${count} times`}` : words);
}

function cell(block, { requests, words, room }, names) {
  return element(
    "li",
    { class: `block owner-${(requests[0] % 8) + 1}${requests.length > 1 ? " shared" : ""}`, value: block },
    element("span", { class: "meta" }, `${block}: request ${names(requests)}`),
    element("code", {}, words.join(" ") + " ▫".repeat(room)),
  );
}

function sizesTable(all, requests, current) {
  const rows = all.map(({ steps, requests: ends }, index) => {
    const { blocks, empty, entries } = costOf(steps[fullestStep(steps)], requests, SIZES[index]);
    const share = `${((100 * empty) / (blocks * SIZES[index])).toFixed(0)} %`;
    const preemptions = ends.reduce((sum, one) => sum + one.num_preemptions, 0);
    const numbers = [blocks, empty, share, entries, preemptions, steps.length];
    return element(
      "tr",
      { "aria-current": SIZES[index] === current ? "true" : null },
      element("th", { scope: "row" }, String(SIZES[index])),
      numbers.map((one) => element("td", { class: "number" }, String(one))),
    );
  });
  const heads = ["tokens in a block", "blocks in use", "empty", "share", "table entries", "preemptions", "steps"];
  return element(
    "div",
    { class: "scroller", tabindex: "0", role: "group", "aria-label": "Block sizes" },
    element("h3", {}, "Waste against table length"),
    element(
      "table",
      {},
      element("caption", { class: "meta" }, "In the step with the longest tables. Large blocks waste places, small " +
        "ones make tables long."),
      element("thead", {}, element("tr", {}, heads.map((head) => element("th", { scope: "col" }, head)))),
      element("tbody", {}, rows),
    ),
  );
}

function tree(nodes) {
  if (!nodes.length) return element("p", { class: "meta" }, "No prompt fills a block of this size.");
  const item = ({ hash, words, requests, children }) =>
    element(
      "li",
      {},
      element("code", {}, `${hash} ${words.join(" ")}`),
      element("span", { class: "meta" }, ` ${requests.length > 1 ? "shared by requests" : "request"} ` +
        requests.map((one) => one + 1).join(", ")),
      children.length > 0 && tree(children),
    );
  return element("ul", { class: "prefix-tree" }, nodes.map(item));
}
