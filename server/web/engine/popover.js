// The popover that explains the thing that was pressed, beside it.
import { button, element } from "../nodes.js";
import { lessonNodes } from "./lessons.js";

const GAP = 8; // pixels
const SHEET = "(max-width: 34rem)"; // as in engine.css

export class Explainer {
  constructor(root) {
    this.title = element("h2", { id: "explained-title" });
    this.body = element("div");
    const close = button("Close", () => this.box.hidePopover(), { class: "quiet" });
    this.box = element(
      "div",
      { popover: "auto", id: "explained", role: "dialog", "aria-labelledby": "explained-title", tabindex: "-1" },
      element("header", {}, this.title, close),
      this.body,
    );
    root.append(this.box);
  }

  /** Explain something at a rectangle of the window: `facts` are pairs of a term and a text, about this thing only. */
  show(place, title, facts, lesson) {
    const rows = facts.flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)]);
    this.title.textContent = title;
    this.body.replaceChildren(element("dl", {}, ...rows), ...lessonNodes(lesson));
    this.box.dataset.lesson = lesson;
    if (this.box.matches(":popover-open")) this.box.hidePopover();
    this.box.showPopover();
    this.#put(place);
    this.box.focus({ preventScroll: true });
  }

  /** Place the box where it does not cover the thing. On a phone it is a sheet (engine.css), and the view moves up. */
  #put(place) {
    const { style } = this.box;
    style.maxHeight = "";
    const { offsetWidth: width, offsetHeight: height } = this.box;
    if (matchMedia(SHEET).matches) {
      const hidden = place.bottom + GAP - (innerHeight - height);
      if (hidden > 0) this.box.closest(".view")?.scrollBy(0, Math.min(hidden, Math.max(place.top - GAP, 0)));
      return;
    }
    const { left, top, maxHeight } = spotFor(place, { width, height }, { width: innerWidth, height: innerHeight });
    style.left = `${left}px`;
    style.top = `${top}px`;
    if (maxHeight !== null) style.maxHeight = `${maxHeight}px`;
  }
}

/**
 * Return where a box goes in a window, so that it does not cover a place: below it, above it, beside it, or where there
 * is most room; then it is not as high as it would be, and `maxHeight` is a number.
 */
export function spotFor(place, box, room) {
  const within = (at, size, all) => Math.max(Math.min(at, all - size - GAP), GAP);
  const left = within(place.left + place.width / 2 - box.width / 2, box.width, room.width);
  const [above, below] = [place.top - 2 * GAP, room.height - place.bottom - 2 * GAP];
  if (box.height <= below) return { left, top: place.bottom + GAP, maxHeight: null };
  if (box.height <= above) return { left, top: place.top - GAP - box.height, maxHeight: null };
  const top = within(place.top + place.height / 2 - box.height / 2, box.height, room.height);
  if (box.width <= room.width - place.right - 2 * GAP) return { left: place.right + GAP, top, maxHeight: null };
  if (box.width <= place.left - 2 * GAP) return { left: place.left - GAP - box.width, top, maxHeight: null };
  if (below >= above) return { left, top: place.bottom + GAP, maxHeight: below };
  return { left, top: GAP, maxHeight: above };
}
