// The guide: a link to a source file opens the file below the text that it stands in, and closes it again. The file is
// scrolled to what the text names.
import { button, element } from "./nodes.js";

const parts = new Map(); // what is open, by its link

function close(link) {
  parts.get(link).remove();
  parts.delete(link);
  link.setAttribute("aria-expanded", "false");
  link.focus();
}

/** Return the place of the line that defines what the text around a link names, the nearest name first; -1 for none. */
function placeOf(link, text) {
  const codes = [...link.closest("p, li, td").querySelectorAll("code")].filter((one) => !one.closest("a"));
  const isBefore = (one) => link.compareDocumentPosition(one) & Node.DOCUMENT_POSITION_PRECEDING;
  const nearest = [...codes.filter(isBefore).reverse(), ...codes.filter((one) => !isBefore(one))];
  const names = nearest.map((one) => one.textContent.split(".").at(-1)).filter((name) => /^\w+$/.test(name));
  const definitions = names.map((name) => new RegExp(`^ *(((async )?def|class) ${name}\\b|${name}(:| =))`, "m"));
  const places = definitions.map((definition) => text.search(definition));
  return places.find((place) => place >= 0) ?? -1;
}

/** Show a text, from the line at a place on. */
function show(pre, text, place) {
  const end = text.indexOf("\n", place);
  if (place < 0) return pre.replaceChildren(text);
  const line = element("mark", {}, text.slice(place, end));
  pre.replaceChildren(text.slice(0, place), line, text.slice(end));
  pre.scrollTop = line.offsetTop - pre.offsetTop;
}

async function open(link) {
  const path = link.href.split("/web/code/")[1];
  const pre = element("pre", { tabindex: "0", "aria-label": path }, "Loading");
  const head = element("header", {}, element("code", {}, path), button("Close", () => close(link)));
  const part = element("section", { class: "code-in-place", "aria-label": `Source code of ${path}` }, head, pre);
  parts.set(link, part);
  link.setAttribute("aria-expanded", "true");
  const block = link.closest("table") ?? link.closest("p, li");
  if (block.localName === "li") block.append(part);
  else block.after(part);
  try {
    const response = await fetch(link.href);
    const text = await response.text();
    if (response.ok) show(pre, text, placeOf(link, text));
    else pre.replaceChildren(`The server responded with status ${response.status}.`);
  } catch {
    pre.replaceChildren("The server cannot be reached.");
  }
}

for (const link of document.querySelectorAll("a.code-link")) {
  link.setAttribute("aria-expanded", "false");
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a tab or a window of its own
    event.preventDefault();
    if (parts.has(link)) close(link);
    else open(link);
  });
}
