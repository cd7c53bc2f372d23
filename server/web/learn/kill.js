// Kill the engine in the middle of a stream, and watch the stream go on.
import { milliseconds } from "../chat/timing_part.js";
import { button, element } from "../nodes.js";
import { guessPart, verdict } from "./guess.js";
import { ofWords } from "./questions.js";
import { longestPause, streamedRun } from "./streamed_run.js";

const NUM_TOKENS = 96;
const KILL_AFTER = 32; // tokens
const SEED = 11;
const OPTIONS = [
  "It ends with an error",
  "It stops, then goes on with other words",
  "It stops, then goes on as if nothing had happened",
];

/** Show the lesson. */
export function show(root, { state, fetchJson, signal }) {
  const status = element("p", { role: "status" });
  const asking = element("div", {});
  const result = element("div", {});
  let guess = state.guesses.get("kill");
  root.append(
    element("h2", {}, "Kill the engine"),
    element(
      "p",
      {},
      "The engine is a process of its own. The API process keeps the tokens of every request in flight, and starts " +
        "another engine if one dies. Here the same request runs twice with the same seed: once in peace, once with " +
        `the engine killed after ${KILL_AFTER} of ${NUM_TOKENS} tokens.`,
    ),
    asking,
    status,
    result,
  );
  ask();

  /** Ask for a guess; its verdict comes with the result. */
  function ask() {
    const open = { ask: "What happens to the stream whose engine is killed?", options: OPTIONS, answer: -1 };
    asking.replaceChildren(
      guessPart(open, guess, (index) => (state.guesses.set("kill", (guess = index)), ask())),
    );
    if (guess === undefined) return;
    asking.append(button("Kill the engine of this server …", confirm, { class: "primary" }));
  }

  function confirm() {
    asking.lastChild.replaceWith(
      element(
        "div",
        { class: "confirm", role: "group", "aria-label": "Confirm" },
        element("p", {}, "Every request of this server stops for the time that a new engine loads the model. None is " +
          "lost. Kill it?"),
        button("Yes, kill it", run, { class: "primary" }),
        " ",
        button("No", ask),
      ),
    );
  }

  async function run() {
    asking.lastChild.remove();
    result.replaceChildren();
    try {
      const { data } = await fetchJson("v1/models", { signal });
      const body = {
        model: data[0].id,
        prompt: state.text,
        seed: SEED,
        max_tokens: NUM_TOKENS,
        temperature: 1,
        ignore_eos: true,
      };
      const quiet = await streamedRun(body, { signal, onToken: (count) => say(`In peace: ${count} tokens.`) });
      const killing = { promise: null };
      const killed = await streamedRun(body, {
        signal,
        onToken(count) {
          say(`${count} tokens; the engine ${killing.promise ? "was killed" : "runs"}.`);
          if (count >= KILL_AFTER)
            killing.promise ??= fetchJson("v1/learn/kill_engine", { body: { confirm: "kill the engine" }, signal });
          killing.promise?.catch(() => {}); // awaited below
        },
      });
      const { pid } = await killing.promise;
      status.textContent = "";
      result.replaceChildren(...compared(quiet, killed, pid));
    } catch (error) {
      if (!signal.aborted) say(error.message);
    }
    asking.append(button("Once more", ask));
  }

  function say(words) {
    status.textContent = words;
  }

  function compared(quiet, killed, pid) {
    const isSame = quiet.hash === killed.hash;
    const question = ofWords("", OPTIONS, isSame ? 2 : 1);
    const end = Math.max(quiet.times.at(-1), killed.times.at(-1));
    const words =
      `process ${pid} was killed, and the stream was silent for ${milliseconds(longestPause(killed))}. ` +
      (isSame ? "The two hashes are equal." : "The two hashes differ.");
    const rows = [["in peace", quiet], ["killed", killed]].map(([name, one]) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, name),
        element("td", { class: "number" }, String(one.tokenIds.length)),
        element("td", { class: "number" }, milliseconds(longestPause(one))),
        element("td", {}, element("code", {}, one.hash)),
      ),
    );
    const heads = ["run", "tokens", "longest pause", "hash of the token ids"];
    return [
      verdict(question, guess, words),
      element("p", {}, "In peace, each line a token:"),
      ticks(quiet, end),
      element("p", {}, "With the engine killed:"),
      ticks(killed, end),
      element(
        "div",
        { class: "scroller" },
        element(
          "table",
          { class: "runs" },
          element("thead", {}, element("tr", {}, heads.map((head) => element("th", { scope: "col" }, head)))),
          element("tbody", {}, rows),
        ),
      ),
      element("blockquote", { class: "learn-text" }, killed.text),
    ];
  }
}

/** Return a bar with a line for each token, at its time. */
function ticks({ times }, end) {
  const lines = times.map((at) => {
    const line = element("span", {});
    line.style.setProperty("--at", at / end);
    return line;
  });
  return element("div", { class: "ticks", role: "img", "aria-label": `${times.length} tokens over time` }, lines);
}
