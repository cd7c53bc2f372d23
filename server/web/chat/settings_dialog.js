// The settings: model, system prompt, sampling, answer limit, seed, theme, key, files.
import { apiKey, setApiKey } from "../api.js";
import { button, counted, element } from "../nodes.js";
import { chosenTheme, setTheme, THEMES } from "../shell/theme.js";
import { readSettings, writeSettings } from "./settings.js";

const NUMBERS = [
  // name, label, attributes, default in the server's words
  ["temperature", "Temperature", { min: "0", max: "2", step: "any" }, "temperature"],
  ["topP", "top_p", { min: "0", max: "1", step: "any" }, "top_p"],
  ["topK", "top_k", { min: "0", step: "1" }, "top_k"],
  ["minP", "min_p", { min: "0", max: "1", step: "any" }, "min_p"],
];

/** Show the settings. `onChange` is called when they were saved; `onFile(action)` does "export" or "import". */
export function openSettings({ session, models, onChange, onFile }) {
  const settings = readSettings();
  const model = session.model;
  const field = (name, attributes) => {
    const input = element("input", { id: `set-${name}`, type: "number", ...attributes });
    input.value = settings[name] ?? "";
    return input;
  };
  const inputs = {};
  for (const [name, , attributes, served] of NUMBERS)
    inputs[name] = field(name, { ...attributes, placeholder: model?.defaults[served] ?? "" });
  inputs.maxTokens = field("maxTokens", { min: "1", step: "1", placeholder: "what fits" });
  inputs.seed = field("seed", { min: "0", step: "1", "aria-label": "Seed" });
  const system = element("textarea", { id: "set-system", rows: "3" });
  system.value = session.messages.size ? session.conversation.system : settings.system;
  const options = models.map(({ name }) => element("option", { value: name }, name));
  const chosen = element("select", { id: "set-model" }, ...options);
  chosen.value = model?.name ?? "";
  const seedKind = (value, text) =>
    element(
      "label",
      {},
      element("input", { type: "radio", name: "seed", value, checked: (value === "fixed") === settings.isSeedFixed }),
      text,
    );
  const key = element("input", { id: "set-key", type: "password", autocomplete: "off" });
  key.value = apiKey();
  const theme = element(
    "select",
    { id: "theme" },
    ...THEMES.map((name) => element("option", { value: name }, name)),
  );
  theme.value = chosenTheme();
  theme.addEventListener("change", () => setTheme(theme.value));

  const label = (input, text, hint = "") => {
    const more = hint ? element("span", { class: "meta" }, ` ${hint}`) : null;
    return element("label", { for: input.id }, element("span", {}, text, more), input);
  };
  const dialog = element(
    "dialog",
    { "aria-labelledby": "settings-title", id: "settings", onclose: () => dialog.remove() },
    element("h2", { id: "settings-title" }, "Settings"),
    element(
      "form",
      { class: "fields", onsubmit: save },
      label(chosen, "Model", model ? `${counted(model.maxModelLen)} tokens of context` : ""),
      label(system, "System prompt", "of this conversation and of new ones"),
      element("p", { class: "meta" }, "An empty field means the server's default."),
      element("div", { class: "row" }, ...NUMBERS.map(([name, text]) => label(inputs[name], text))),
      label(inputs.maxTokens, "Answer limit", "in tokens; empty: as much as fits into the context"),
      element(
        "fieldset",
        {},
        element("legend", {}, "Seed"),
        seedKind("new", "new each time"),
        seedKind("fixed", "fixed"),
        inputs.seed,
      ),
      element("div", { class: "row" }, label(theme, "Theme"), label(key, "API key", "kept until this tab is closed")),
      element(
        "div",
        { class: "end" },
        button("Import…", () => onFile("import")),
        button("Export all", () => onFile("export")),
        button("Cancel", () => dialog.close()),
        element("button", { class: "primary" }, "Save"),
      ),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();

  function save(event) {
    event.preventDefault();
    const numberIn = ({ value }) => (value === "" ? null : Number(value));
    const numbers = Object.entries(inputs).map(([name, input]) => [name, numberIn(input)]);
    const isSeedFixed = dialog.querySelector("[name=seed]:checked").value === "fixed";
    writeSettings({ ...Object.fromEntries(numbers), isSeedFixed, model: chosen.value, system: system.value });
    session.setSystem(system.value);
    setApiKey(key.value);
    dialog.close();
    onChange();
  }
}
