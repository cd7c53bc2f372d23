// The list of events, each with its time and step, in plain words, with a filter.
import { button, element } from "../nodes.js";
import { reasonText, update } from "./requests.js";
import { clock } from "./scale.js";

const MAX_KEPT = 1000;
const MAX_SHOWN = 60;
const GROUPS = {
  all: () => true,
  "starts and ends": ({ kind }) => ["join", "finish", "abort"].includes(kind),
  waiting: ({ kind }) => kind === "wait" || kind === "read",
  preemptions: ({ kind }) => kind === "preempt" || kind === "evict",
  prompts: ({ kind }) => kind === "chunk",
  engine: ({ kind }) => kind === "restart",
};
const ENDS = {
  stop: "ended: its answer is complete",
  length: "ended: its limit of tokens",
  abort: "was stopped",
  error: "failed",
};

/** Return an event in words. */
export function sentence({ kind, request, text }) {
  switch (kind) {
    case "wait":
      return `${request} waits: ${reasonText(text)}`;
    case "read":
      return `${request} reads ${text}`;
    case "join":
      return text ? `${request} starts: ${text}` : `${request} starts`;
    case "chunk":
      return `${request} reads its prompt: ${text}`;
    case "preempt":
      return `${request} is preempted: ${text}`;
    case "finish":
      return `${request} ${ENDS[text] ?? `ended: ${text}`}`;
    case "abort":
      return `${request} was stopped`;
    case "evict":
      return `${text} of cached text overwritten`;
    default:
      return text || kind;
  }
}

export class EventList {
  /** `onPress` gets the event that was pressed and where. */
  constructor(onPress) {
    this.onPress = onPress;
    this.kept = [];
    this.lines = new WeakMap();
    this.list = element("ol", { class: "events" });
    const options = Object.keys(GROUPS).map((name) => element("option", { value: name }, name));
    this.filter = element("select", { onchange: () => this.onFilter() }, ...options);
    this.request = element("input", { type: "number", min: "1", placeholder: "all", oninput: () => this.onFilter() });
    this.onFilter = () => {};
    this.node = element(
      "section",
      { class: "panel event-panel" },
      element(
        "header",
        {},
        element("h2", {}, "Events"),
        element("label", {}, "Show ", this.filter),
        element("label", {}, "Request ", this.request),
      ),
      element("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": "Events" }, this.list),
    );
  }

  /** Take the events of a snapshot; `timeOf` returns the time of a step. */
  take(view, timeOf) {
    for (const event of view.events) this.kept.push({ ...event, time: timeOf(event.step) });
    if (this.kept.length > MAX_KEPT) this.kept.splice(0, this.kept.length - MAX_KEPT);
  }

  /** Show the latest events up to the step of the scene. */
  draw({ entry }) {
    const matches = GROUPS[this.filter.value];
    const request = Number(this.request.value) || 0;
    const found = [];
    for (let index = this.kept.length - 1; index >= 0 && found.length < MAX_SHOWN; index--) {
      const event = this.kept[index];
      if (entry && event.step > entry.step) continue;
      if (matches(event) && (!request || event.request === request)) found.push(event);
    }
    update(this.list, found.map((event) => this.#line(event)));
    for (const event of found) this.#line(event).ariaCurrent = event.step === entry?.step ? "step" : null;
  }

  #line(event) {
    if (!this.lines.has(event)) {
      const onPress = ({ currentTarget }) => this.onPress(event, currentTarget.getBoundingClientRect());
      const press = button(sentence(event), onPress, { class: "quiet" });
      const when = element("span", { class: "meta" }, `${clock(event.time)}  step ${event.step}`);
      this.lines.set(event, element("li", { "data-step": event.step, "data-kind": event.kind }, when, press));
    }
    return this.lines.get(event);
  }
}
