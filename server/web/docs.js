// The API reference, from /openapi.json: every route with its fields, and a form to try it.
import { by, complaint, headers, startFrame, trouble } from "./frame.js";

const MAX_SHOWN = 200_000; // characters of a response
let schemas = {};
let shownKey; // the key that the routes shown were fetched with; undefined: none are shown

/** Return an element with attributes and children, which are nodes or strings. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const resolved = (schema) => (schema.$ref ? schemas[schema.$ref.split("/").pop()] : schema);
const alternatives = (schema) => schema.anyOf ?? schema.oneOf ?? [schema];
const isNull = (schema) => schema.type === "null";

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
    if (one.minItems) texts.push(`at least ${one.minItems} items`);
    if (one.maxItems) texts.push(`at most ${one.maxItems} items`);
    if (one.minLength) texts.push(`at least ${one.minLength} characters`);
    if (one.maxLength) texts.push(`at most ${one.maxLength} characters`);
    if (one.pattern) texts.push(`matches ${one.pattern}`);
  }
  return texts.join(", ");
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
    const text = [bounds(field), field.description ?? ""].filter(Boolean).join(". ");
    const cell = element("td", {}, text);
    for (const [title, inner] of parts(field)) {
      const details = element("details", {}, element("summary", {}, title));
      details.addEventListener("toggle", () => details.children.length > 1 || details.append(fields(inner)), { once: true });
      cell.append(details);
    }
    const fallback = isRequired ? "required" : field.default === undefined ? "" : JSON.stringify(field.default);
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, element("code", {}, name)),
      element("td", {}, kind(field)),
      element("td", {}, fallback),
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
  const output = element("pre", { hidden: "", tabindex: "0", "aria-label": "Response" });
  const send = element("button", { type: "submit" }, "Send");
  const stop = element("button", { type: "button", disabled: "" }, "Stop");
  const form = element("form", {});
  const inputs = names.map((name) => {
    const input = element("input", { id: `${id}-${name}`, required: "" });
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
    const url = inputs.reduce((text, [name, input]) => text.replace(`{${name}}`, encodeURIComponent(input.value)), path);
    const request = { method: method.toUpperCase(), headers: headers(), signal: abort.signal };
    if (content) Object.assign(request, { body: body.value, headers: { ...headers(), "content-type": "application/json" } });
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
  const title = element("summary", {}, element("code", {}, `${method.toUpperCase()} ${path}`), ` ${operation.summary ?? ""}`);
  const details = element("details", { id, class: "route" }, title);
  const draw = () => {
    if (details.children.length > 1) return;
    const schema = operation.requestBody?.content?.["application/json"]?.schema;
    if (schema) details.append(element("h3", {}, "Request"), fields(resolved(schema)));
    const answer = operation.responses?.["200"]?.content?.["application/json"]?.schema;
    if (answer && resolved(answer)?.properties) details.append(element("h3", {}, "Response"), fields(resolved(answer)));
    const statuses = Object.entries(operation.responses ?? {}).map(([status, { description }]) =>
      element("li", {}, element("code", {}, status), ` ${description}`),
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
  const key = by("key").value;
  if (key === shownKey) return;
  let response;
  try {
    response = await fetch("/openapi.json", { headers: headers() });
  } catch {
    trouble("The server cannot be reached.");
    return;
  }
  if (!response.ok) {
    trouble(await complaint(response));
    return;
  }
  const described = await response.json();
  if (key === shownKey) return; // shown meanwhile
  shownKey = key;
  schemas = described.components?.schemas ?? {};
  const sections = new Map();
  for (const [path, operations] of Object.entries(described.paths))
    for (const [method, operation] of Object.entries(operations)) {
      const tag = operation.tags?.[0] ?? "other";
      if (!sections.has(tag)) sections.set(tag, element("section", {}, element("h2", {}, tag)));
      sections.get(tag).append(route(method, path, operation));
    }
  by("routes").replaceChildren(
    element("p", {}, `Version ${described.info.version}, from /openapi.json. A null value selects the default of a field.`),
    ...sections.values(),
  );
  const asked = document.getElementById(location.hash.slice(1));
  if (asked?.classList.contains("route")) {
    asked.open = true;
    asked.scrollIntoView();
  }
}

startFrame(load);
load();
