// The API reference, from /openapi.json: every route with its fields, and a form to try it.
import { address, apiKey, fetchJson, headers, setApiKey } from "./api.js";
import { element } from "./nodes.js";
import { turnTheme } from "./shell/theme.js";

const MAX_SHOWN = 200_000; // characters of a response
let schemas = {};
let shownKey; // the key that the routes shown were fetched with; undefined: none are shown

const by = (id) => document.getElementById(id);

/** Show an error, or hide the line if the text is empty. */
function trouble(text) {
  by("trouble").textContent = text;
  by("trouble").hidden = !text;
}

const resolved = (schema) => (schema.$ref ? schemas[schema.$ref.split("/").pop()] : schema);
const alternatives = (schema) => schema.anyOf ?? schema.oneOf ?? [schema];
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const capitalized = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const isNull = (schema) => schema.type === "null";

/** Return a text with its `code` as nodes. */
function prose(text) {
  const parts = text.split("`");
  const isCode = (index) => index % 2 === 1 && index < parts.length - 1;
  return parts.map((part, index) => (isCode(index) ? element("code", {}, part) : part));
}

/** Describe the type of a value. */
function kind(schema) {
  const words = alternatives(schema)
    .filter((one) => !isNull(one))
    .map((one) => {
      if (one.anyOf || one.oneOf) return kind(one);
      if (one.$ref) return "object";
      if (one.const !== undefined) return JSON.stringify(one.const);
      if (one.enum) return one.enum.map((value) => JSON.stringify(value)).join(" or ");
      if (one.type === "array") return `list of ${kind(one.items ?? {})}`;
      return one.type ?? "anything";
    });
  return [...new Set(words)].join(" or ");
}

/** Describe the limits of a value. */
function bounds(schema) {
  const texts = [];
  for (const one of alternatives(schema)) {
    const low = one.minimum ?? one.exclusiveMinimum;
    const high = one.maximum ?? one.exclusiveMaximum;
    if (low !== undefined) texts.push(one.minimum === undefined ? `above ${low}` : `at least ${low}`);
    if (high !== undefined) texts.push(one.maximum === undefined ? `below ${high}` : `at most ${high}`);
    if (one.minItems) texts.push(`at least ${plural(one.minItems, "item")}`);
    if (one.maxItems) texts.push(`at most ${plural(one.maxItems, "item")}`);
    if (one.minLength) texts.push(`at least ${plural(one.minLength, "character")}`);
    if (one.maxLength) texts.push(`at most ${plural(one.maxLength, "character")}`);
    if (one.pattern) texts.push(`matches ${one.pattern}`);
  }
  return texts.length ? `${capitalized(texts.join(", "))}.` : "";
}

/** Return the object schemas in a value, by name. */
function parts(schema) {
  return alternatives(schema).flatMap((one) => {
    if (one.anyOf || one.oneOf) return parts(one);
    if (one.type === "array") return parts(one.items ?? {});
    const name = one.$ref?.split("/").pop();
    return name && schemas[name]?.properties ? [[name, schemas[name]]] : [];
  });
}

/** Return a table of an object's fields; nested objects are drawn when they are opened. */
function fields(schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => {
    const isRequired = schema.required?.includes(name);
    const meaning = (field.description ?? "").replace(/[^.]$/, "$&.");
    const text = [meaning, bounds(field)].filter(Boolean).join(" ");
    const cell = element("td", {}, ...prose(text));
    for (const [title, inner] of parts(field)) {
      const details = element("details", {}, element("summary", {}, title));
      const draw = () => details.children.length > 1 || details.append(fields(inner));
      details.addEventListener("toggle", draw, { once: true });
      cell.append(details);
    }
    const fallback = isRequired ? "required" : field.default === undefined ? "" : JSON.stringify(field.default);
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, element("code", {}, name)),
      element("td", {}, kind(field)),
      element("td", { class: isRequired ? "required" : null }, fallback),
      cell,
    );
  });
  const head = ["Field", "Type", "Default", "Meaning"].map((title) => element("th", { scope: "col" }, title));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
  return element("div", { class: "scrolling wide", tabindex: "0", role: "region", "aria-label": "Fields" }, table);
}

/** Show a response while it is received. */
async function show(response, output) {
  output.textContent = `${response.status} ${response.headers.get("x-request-id") ?? ""}\n\n`;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    output.append(value);
    if (output.textContent.length > MAX_SHOWN) {
      output.append("\n...");
      reader.cancel();
      return;
    }
  }
}

/** Return a form that sends a request. */
function trial(method, path, operation, id) {
  const names = (operation.parameters ?? []).filter((one) => one.in === "path").map((one) => one.name);
  const content = operation.requestBody?.content?.["application/json"];
  const output = element("pre", { hidden: true, tabindex: "0", "aria-label": "Response" });
  const send = element("button", { type: "submit" }, "Send");
  const stop = element("button", { type: "button", disabled: true }, "Stop");
  const form = element("form", {});
  const inputs = names.map((name) => {
    const input = element("input", { id: `${id}-${name}`, required: true });
    form.append(element("label", { for: input.id }, `${name} `, input));
    return [name, input];
  });
  const body = element("textarea", { id: `${id}-body`, rows: "8", spellcheck: "false" });
  if (content) {
    body.value = JSON.stringify(content.example ?? {}, null, 2);
    form.append(element("label", { for: body.id }, "Body ", body));
  }
  form.append(element("p", {}, send, " ", stop), output);
  let abort = new AbortController();
  stop.addEventListener("click", () => abort.abort());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    trouble("");
    abort = new AbortController();
    const fill = (text, [name, input]) => text.replace(`{${name}}`, encodeURIComponent(input.value));
    const url = address(inputs.reduce(fill, path));
    const request = { method: method.toUpperCase(), headers: headers(), signal: abort.signal };
    if (content) {
      request.body = body.value;
      request.headers["content-type"] = "application/json";
    }
    send.disabled = true;
    stop.disabled = false;
    output.hidden = false;
    output.textContent = "...";
    try {
      await show(await fetch(url, request), output);
    } catch (error) {
      output.append(error.name === "AbortError" ? "\nStopped." : `\nThe server cannot be reached: ${error.message}`);
    }
    send.disabled = false;
    stop.disabled = true;
  });
  return form;
}

/** Return one route, collapsed. */
function route(method, path, operation) {
  const id = `${method}${path.replaceAll(/[^a-z0-9]+/gi, "-")}`;
  const name = element("code", {}, `${method.toUpperCase()} ${path}`);
  const title = element("summary", {}, name, " ", ...prose(operation.summary ?? ""));
  const details = element("details", { id, class: "route" }, title);
  const draw = () => {
    if (details.children.length > 1) return;
    const schema = operation.requestBody?.content?.["application/json"]?.schema;
    if (schema) details.append(element("h3", {}, "Request"), fields(resolved(schema)));
    const answer = operation.responses?.["200"]?.content?.["application/json"]?.schema;
    if (answer && resolved(answer)?.properties) details.append(element("h3", {}, "Response"), fields(resolved(answer)));
    const statuses = Object.entries(operation.responses ?? {}).map(([status, { description }]) =>
      element("li", {}, element("code", {}, status), " ", ...prose(description)),
    );
    details.append(element("h3", {}, "Statuses"), element("ul", {}, ...statuses));
    details.append(element("h3", {}, "Try it"), trial(method, path, operation, id));
  };
  details.addEventListener("toggle", () => {
    if (!details.open) return;
    draw();
    history.replaceState(null, "", `#${id}`);
  });
  return details;
}

/** Fetch and show the routes, unless they are shown for this key already. */
async function load() {
  const key = apiKey();
  if (key === shownKey) return;
  let described;
  try {
    described = await fetchJson("openapi.json");
  } catch (error) {
    const isLocked = error.status === 401;
    trouble(isLocked ? "The server requires an API key. Enter it in the field above." : error.message);
    return;
  }
  if (key === shownKey) return; // shown meanwhile
  shownKey = key;
  schemas = described.components?.schemas ?? {};
  const sections = new Map();
  for (const [path, operations] of Object.entries(described.paths))
    for (const [method, operation] of Object.entries(operations)) {
      const tag = operation.tags?.[0] ?? "other";
      if (!sections.has(tag)) sections.set(tag, element("section", {}, element("h2", {}, capitalized(tag))));
      sections.get(tag).append(route(method, path, operation));
    }
  by("routes").replaceChildren(
    element("p", {}, `Version ${described.info.version}, from /openapi.json.`),
    element("p", {}, "A null value selects the default of a field."),
    ...sections.values(),
  );
  const asked = document.getElementById(location.hash.slice(1));
  if (asked?.classList.contains("route")) {
    asked.open = true;
    asked.scrollIntoView();
  }
}

by("key").value = apiKey();
by("key").addEventListener("change", () => {
  setApiKey(by("key").value);
  trouble("");
  load();
});
by("theme").addEventListener("click", turnTheme);
load();
