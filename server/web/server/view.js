// The server view: state, models, limits, usage of the key and options in force. Nothing here can be changed.
import { address } from "../api.js";
import { counted, element } from "../nodes.js";
import { askForKey } from "../shell/key_dialog.js";
import { bytes, elapsed, parameters } from "./units.js";

const REFRESH_MS = 5000;

/** Show the server in `root` until `signal` is aborted. */
export function mount(root, { fetchJson, signal }) {
  const status = element("p", { class: "failure", role: "status", hidden: true });
  const body = element("div");
  root.append(
    element("link", { rel: "stylesheet", href: address("web/server/server.css") }),
    element("div", { class: "server-view" }, status, body),
  );

  async function refresh() {
    try {
      const facts = await fetchJson("v1/server", { signal });
      const open = new Set([...body.querySelectorAll("details[open]")].map((one) => one.dataset.name));
      body.replaceChildren(...sections(facts, open));
      status.hidden = true;
    } catch (error) {
      if (signal.aborted) return;
      status.textContent = error.message;
      status.hidden = false;
      if (error.status === 401 && (await askForKey())) return refresh();
    }
    if (!signal.aborted) timer = setTimeout(refresh, REFRESH_MS);
  }

  let timer = 0;
  signal.addEventListener("abort", () => clearTimeout(timer));
  refresh();
}

function sections(facts, open) {
  return [
    section("State", list([
      ["Server", facts.is_ready ? "ready" : "not ready"],
      ["Version", facts.version],
      ["Running for", elapsed(facts.uptime_seconds)],
    ])),
    ...facts.models.map(modelSection),
    section("What a request may do", list(limitRows(facts))),
    facts.key ? section(`Your key, ${facts.key.name}`, list(usageRows(facts.key))) : section("Keys", noKeys()),
    section("More", links()),
    section("Options in force", ...optionTables(facts.options, open)),
  ];
}

const section = (title, ...children) => element("section", { class: "panel" }, element("h2", {}, title), ...children);

function list(pairs) {
  return element("dl", {}, ...pairs.flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)]));
}

function modelSection(model) {
  const [name, ...aliases] = model.names;
  const numTokens = model.num_blocks * model.block_size;
  const now = `${counted(model.num_running)} running, ${counted(model.num_waiting)} waiting`;
  const rows = [
    ["State", model.state === "replacing" ? "being replaced" : model.state],
    ["Now", now],
  ];
  if (aliases.length) rows.push(["Also called", aliases.join(", ")]);
  if (model.num_parameters) rows.push(["Parameters", parameters(model.num_parameters)]);
  if (model.weights) rows.push(["Weights", `${model.weights}; ${bytes(model.weight_bytes)}`]);
  if (model.adapter) rows.push(["LoRA", model.adapter]);
  if (model.draft_model) rows.push(["Draft model", model.draft_model]);
  const memory = model.kv_cache_bytes ? ` in ${model.kv_cache_dtype}, ${bytes(model.kv_cache_bytes)}` : "";
  const blocks = `${counted(model.num_blocks)} blocks of ${model.block_size} tokens`;
  rows.push(["KV pool", `${blocks}: ${counted(numTokens)} tokens${memory}`]);
  if (model.fingerprint) rows.push(["Fingerprint", model.fingerprint]);
  return section(`Model ${name}`, list(rows));
}

function limitRows({ models, limits }) {
  const rows = models.flatMap((model) => {
    const of = models.length > 1 ? ` of ${model.names[0]}` : "";
    const wait = model.max_wait_seconds === null ? "" : `, an expected wait of ${model.max_wait_seconds} s`;
    const sequences = (count) => `${counted(count)} sequences`;
    return [
      [`Length${of}`, `${counted(model.max_model_len)} tokens, prompt and answer together`],
      [`At once${of}`, `${sequences(model.max_num_seqs)}, ${counted(model.max_batch_tokens)} tokens in a step`],
      [`Queue${of}`, `${sequences(model.max_queued_requests)}, ${counted(model.max_queued_tokens)} tokens${wait}`],
    ];
  });
  return [
    ...rows,
    ["Choices", `${counted(limits.max_choices)} in one request`],
    ["Body", `${bytes(limits.max_body_bytes)}, to be sent within ${limits.body_timeout_seconds} s`],
    ["Reading", `a stream that is not read for ${limits.write_timeout_seconds} s is closed`],
  ];
}

const usageRows = (key) => [
  ["Requests", counted(key.num_requests)],
  ["Prompt tokens", counted(key.num_prompt_tokens)],
  ["Generated tokens", counted(key.num_generation_tokens)],
  ["Counted", "since the server was started"],
];

const noKeys = () => element("p", {}, "This server accepts requests without a key.");

function links() {
  const pages = [
    ["docs", "API reference", "every endpoint and field"],
    ["metrics", "Metrics", "in the format of Prometheus; a server with keys needs one for them"],
    ["openapi.json", "OpenAPI document", "the API reference for programs"],
    ["web/llama2-from-scratch.html", "Llama 2 from scratch", "the guide to the model and the engine"],
  ];
  const item = ([path, name, text]) => element("li", {}, element("a", { href: address(path) }, name), `: ${text}`);
  return element("ul", {}, ...pages.map(item));
}

function optionTables(options, open) {
  return [...grouped(options)].map(([name, members]) => {
    const changed = members.filter((one) => one.is_set).length;
    const summary = `${name}: ${changed ? `${changed} of ${members.length} set` : `${members.length} defaults`}`;
    const rows = members.map((one) =>
      element(
        "tr",
        { class: one.is_set ? "set" : null },
        element("th", { scope: "row" }, element("code", {}, `--${one.name}`)),
        element("td", {}, one.value),
        element("td", { class: "meta" }, one.is_set ? "set" : "default"),
      ),
    );
    const table = element("table", {}, element("tbody", {}, ...rows));
    const region = { class: "scroller", tabindex: "0", role: "region", "aria-label": name };
    const attributes = { "data-name": name, open: open.has(name) };
    return element("details", attributes, element("summary", {}, summary), element("div", region, table));
  });
}

function grouped(options) {
  const groups = new Map();
  for (const one of options) groups.set(one.group, [...(groups.get(one.group) ?? []), one]);
  return groups;
}
