// The numbers of a lesson's stops, as links.
import { element } from "../nodes.js";

/** Return the links of a lesson with these titles; `current` counts from 1. */
export function stepLinks(lesson, titles, current) {
  const item = (title, index) =>
    element(
      "li",
      {},
      element(
        "a",
        { href: `#learn/${lesson}/${index + 1}`, title, "aria-current": index + 1 === current ? "step" : null },
        element("span", { class: "for-readers" }, `${title}, stop `),
        String(index + 1),
      ),
    );
  return element("ol", { class: "stops" }, titles.map(item));
}
