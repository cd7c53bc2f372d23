// The scrubber: pause, one step back or on, and a slider over all steps that are known.
import { button, counted, element } from "../nodes.js";
import { duration } from "./scale.js";

export class Scrubber {
  /** `onMove` gets the entry to show, null for the latest one. */
  constructor(replay, onMove) {
    this.replay = replay;
    this.onMove = onMove;
    this.entry = null; // null: the latest one
    const toggle = () => this.set(this.entry ? null : replay.entries.at(-1));
    this.pause = button("Pause", toggle, { class: "pause" });
    const range = { type: "range", min: "0", max: "0", value: "0", "aria-label": "Step" };
    this.slider = element("input", { ...range, oninput: () => this.#slide() });
    this.text = element("output", { class: "meta", "aria-live": "off" });
    this.span = element("select", { "aria-label": "Length of the time line" });
    for (const [seconds, text] of [[10, "10 s"], [30, "30 s"], [60, "1 min"], [120, "2 min"]])
      this.span.append(element("option", { value: seconds, selected: seconds === 30 }, text));
    this.span.addEventListener("change", () => onMove());
    const back = button("Previous step", () => this.move(-1), { class: "back" });
    const on = button("Next step", () => this.move(1), { class: "on" });
    const parts = [this.pause, back, on, this.slider, this.span, this.text];
    this.node = element("div", { class: "scrubber", role: "group", "aria-label": "Replay" }, ...parts);
  }

  /** Return the index of the entry shown. */
  get index() {
    const { entries } = this.replay;
    if (!this.entry) return entries.length - 1;
    return Math.max(entries.indexOf(this.entry), 0); // the oldest one if it is forgotten
  }

  get spanMs() {
    return 1000 * Number(this.span.value);
  }

  /** Show an entry, or the latest one and those that follow for null. */
  set(entry) {
    this.entry = entry ?? null;
    this.onMove();
  }

  /** Show the entry before or after: each is a step. */
  move(by) {
    const { entries } = this.replay;
    const next = entries[Math.min(Math.max(this.index + by, 0), entries.length - 1)];
    if (next) this.set(next);
  }

  #slide() {
    const { entries } = this.replay;
    const entry = entries[Number(this.slider.value)];
    if (entry) this.set(entry);
  }

  draw() {
    const { entries } = this.replay;
    const index = this.index;
    const entry = entries[index];
    this.pause.textContent = this.entry ? "Live" : "Pause";
    this.slider.max = String(Math.max(entries.length - 1, 0));
    this.slider.value = String(Math.max(index, 0));
    if (!entry) return;
    const tokens = `${counted(entry.numPrefill)} prompt and ${counted(entry.numDecode)} answer tokens`;
    const work = entry.ms ? `: ${tokens} in ${duration(entry.ms)}` : "";
    const seconds = ((entries.at(-1).time - entry.time) / 1000).toFixed(1);
    const numLater = entries.length - 1 - index;
    const later = `${counted(numLater)} ${numLater === 1 ? "step" : "steps"}`;
    const ago = numLater ? `, ${later} and ${seconds} s ago` : ", the latest";
    const where = this.entry ? ago : ", now";
    this.text.textContent = `Step ${counted(entry.step)}${work}${where}`;
    this.slider.setAttribute("aria-valuetext", this.text.textContent);
  }
}
