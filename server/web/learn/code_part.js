// The function of the server's own source that a stop is about, as it is installed.
import { request } from "../api.js";
import { element } from "../nodes.js";
import { functionIn } from "./source.js";

/** Return a folded part with the function; it loads when it is opened. `code` is { file, symbol, marks }. */
export function codePart({ file, symbol, marks }, signal) {
  const pre = element("pre", { tabindex: "0" });
  const details = element(
    "details",
    { class: "code-part", open: true },
    element("summary", {}, element("code", {}, file), `, ${symbol}`),
    pre,
  );
  fill();
  return details;

  async function fill() {
    try {
      const response = await request(`web/code/${file}`, { signal });
      const lines = functionIn(await response.text(), symbol).map(({ number, text }) => {
        const isMarked = marks.some((mark) => text.includes(mark));
        const count = element("span", { class: "line-number", "aria-hidden": "true" }, `${number} `);
        return element(isMarked ? "mark" : "span", {}, count, `${text}\n`);
      });
      pre.replaceChildren(...lines);
    } catch (error) {
      if (!signal.aborted) pre.textContent = error.message;
    }
  }
}
