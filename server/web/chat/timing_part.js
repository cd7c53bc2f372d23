// The timing of an answer: where its time went, from the record that the server keeps of each request.
import { fetchJson } from "../api.js";
import { element } from "../nodes.js";

/** Return milliseconds as text: 12 ms, 1.25 s. */
export const milliseconds = (ms) => (ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${Math.round(ms)} ms`);

/** Return the node. It asks the server, if the answer did not bring its record along. */
export function timingPart(message) {
  const node = element("div", {});
  if (message.explanation) node.append(...drawn(message.explanation));
  else if (!message.requestId) node.append(element("p", { class: "meta" }, "This answer has no recorded request."));
  else {
    node.append(element("p", { class: "meta" }, "Loading"));
    fetchJson(`v1/requests/${message.requestId}/explain`).then(
      (explanation) => node.replaceChildren(...drawn(explanation)),
      (error) => node.replaceChildren(element("p", { class: "meta" }, error.message)),
    );
  }
  return node;
}

/** Return the phases of a request in milliseconds: waiting, reading the prompt, answering. */
export function phases(timeline) {
  const at = (event) => timeline.find((one) => one.event === event)?.at_ms;
  const end = timeline.at(-1).at_ms;
  const joined = at("joined") ?? end;
  const first = at("first token") ?? end;
  return [
    ["Queue", joined],
    ["Prompt", Math.max(first - joined, 0)],
    ["Answer", Math.max(end - first, 0)],
  ];
}

function batchText({ tokens, steps, mean_batch: mean, largest_batch: largest }) {
  return `${tokens} tokens in ${steps} steps; on average ${mean.toFixed(1)} requests in the batch, at most ${largest}.`;
}

function drawn({ timeline, choices, left_out: leftOut }) {
  const parts = phases(timeline);
  const total = Math.max(parts.reduce((sum, [, ms]) => sum + ms, 0), 1);
  const bar = element("div", { class: "phases", "aria-hidden": "true" });
  parts.forEach(([, ms], index) => {
    const part = element("span", { class: `phase-${index}` });
    part.style.flexGrow = ms / total;
    bar.append(part);
  });
  const rows = parts.map(([name, ms], index) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, element("span", { class: `shade-box phase-${index}` }), name),
      element("td", { class: "number" }, milliseconds(ms)),
    ),
  );
  const facts = choices.map((one) => element("p", { class: "meta" }, batchText(one)));
  const events = timeline.map(({ at_ms: ms, event, ...more }) => {
    const shown = Object.entries(more).filter(([name]) => name !== "choice");
    const details = shown.map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(", ");
    const time = element("td", { class: "number" }, milliseconds(ms));
    return element("tr", {}, time, element("td", {}, event), element("td", { class: "meta" }, details));
  });
  const heads = ["At", "Event", "Details"].map((text) => element("th", { scope: "col" }, text));
  return [
    bar,
    element("table", { class: "phase-table" }, element("tbody", {}, ...rows)),
    ...facts,
    element("h3", {}, "Events"),
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...heads)),
      element("tbody", {}, ...events),
    ),
    leftOut ? element("p", { class: "meta" }, `${leftOut} more events were left out.`) : "",
  ];
}
