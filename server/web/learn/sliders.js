// Sliders with the number beside them.
import { element } from "../nodes.js";

/**
 * Return a slider: its node, `value()`, and `set(value)`; both the reader and `set` call `onChange`.
 *
 * `textOf` writes the value for the reader.
 */
export function slider(label, { min, max, step, value, textOf = String }, onChange) {
  const shown = element("output", { class: "number" }, textOf(value));
  const range = element("input", {
    type: "range", min, max, step, value, "aria-label": label, "aria-valuetext": textOf(value),
  });
  range.addEventListener("input", changed);
  return {
    node: element("label", {}, label, range, shown),
    value: () => Number(range.value),
    set(to) {
      range.value = to;
      changed();
    },
  };

  function changed() {
    const text = textOf(Number(range.value));
    shown.textContent = text;
    range.setAttribute("aria-valuetext", text);
    onChange(Number(range.value));
  }
}

/** Return the node of a slider over a list of values; `textOf` writes one. */
export function choiceSlider(label, values, value, onChange, textOf = String) {
  const places = { min: 0, max: values.length - 1, step: 1, value: values.indexOf(value) };
  const options = { ...places, textOf: (place) => textOf(values[place]) };
  return slider(label, options, (place) => onChange(values[place])).node;
}
