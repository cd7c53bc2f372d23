// Requests over time: one row each, coloured by what happens to it.
import { milliseconds } from "../chat/timing_part.js";
import { element } from "../nodes.js";

const KINDS = { queue: "waits", prompt: "its prompt is computed", answer: "it generates", lost: "preempted, waits" };

/** Return the chart of what `spansOf` returns, on an axis of `total` milliseconds, with the end of each request. */
export function gantt(lives, total) {
  const rows = lives.flatMap(({ spans, tokens }, index) => {
    const drawn = spans.filter(({ kind }) => kind in KINDS);
    const words = drawn.map(({ kind, from, to }) => `${KINDS[kind]} from ${milliseconds(from)} to ${milliseconds(to)}`);
    return [
      element("span", {}, `Request ${index + 1}`),
      element("span", { class: "gantt-track", role: "img", "aria-label": words.join(", ") }, drawn.map(bar)),
      element("span", { class: "number" }, milliseconds(tokens.at(-1))),
    ];
  });
  return element("div", { class: "gantt" }, rows);

  function bar({ kind, from, to }) {
    const made = element("span", { class: `time-${kind}` });
    made.style.setProperty("--from", from / total);
    made.style.setProperty("--to", to / total);
    return made;
  }
}

/** Return what the colours mean. */
export const ganttLegend = () =>
  element(
    "ul",
    { class: "legend" },
    Object.entries(KINDS).map(([kind, words]) =>
      element("li", {}, element("span", { class: `time-mark time-${kind}` }), words),
    ),
  );
