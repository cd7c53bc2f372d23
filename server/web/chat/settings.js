// Settings of this browser: model, sampling, limits. What is not set is left to the server.
import { ofBrowser } from "../shell/storage.js";

const NAME = "settings";
const NUMBERS = ["temperature", "topP", "topK", "minP", "maxTokens", "seed"];

/** Return the settings: model and system are texts, the numbers are null where the server's default holds. */
export function readSettings() {
  let stored = {};
  try {
    stored = JSON.parse(ofBrowser.get(NAME)) ?? {};
  } catch {
    // Broken: start anew.
  }
  const settings = { model: text(stored.model), system: text(stored.system), isSeedFixed: stored.isSeedFixed === true };
  for (const name of NUMBERS) settings[name] = Number.isFinite(stored[name]) ? stored[name] : null;
  return settings;
}

const text = (value) => (typeof value === "string" ? value : "");

export function writeSettings(settings) {
  ofBrowser.set(NAME, JSON.stringify(settings));
}

/** Return the fields of a request for these settings. A seed is always among them, so that it can be repeated. */
export function samplingFields(settings) {
  const isFixed = settings.isSeedFixed && settings.seed !== null;
  const fields = {
    temperature: settings.temperature,
    top_p: settings.topP,
    top_k: settings.topK,
    min_p: settings.minP,
    max_completion_tokens: settings.maxTokens,
    seed: isFixed ? settings.seed : Math.floor(Math.random() * 2 ** 31),
  };
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null));
}
