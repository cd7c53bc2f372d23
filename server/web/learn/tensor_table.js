// Tensors as a table: name, shape, which row, and its first numbers.
import { element } from "../nodes.js";

/** Return a number with four places, minus infinity for null. */
export const place4 = (number) => (number === null ? "−∞" : number.toFixed(4).replace("-", "−"));

/** Return the table of the tensors of a stop. */
export function tensorTable(tensors) {
  return element(
    "div",
    { class: "scroller", tabindex: "0", role: "group", "aria-label": "Numbers of this stop" },
    element(
      "table",
      { class: "tensors" },
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          ["tensor", "shape", "row"].map((name) => element("th", { scope: "col" }, name)),
          element("th", { scope: "col", colspan: "5" }, "first numbers"),
        ),
      ),
      element("tbody", {}, tensors.map(row)),
    ),
  );
}

function row({ name, shape, where, numbers }) {
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, name),
    element("td", {}, `[${shape.join(", ")}]`),
    element("td", {}, where),
    numbers.map((number) => element("td", { class: "number" }, place4(number))),
  );
}
