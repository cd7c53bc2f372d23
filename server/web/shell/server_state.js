// The state of the server: ready, starting, engine being replaced, gone, offline.
import { fetchJson } from "../api.js";

const READY_SECONDS = 10; // between two questions while all is well
const TROUBLE_SECONDS = 2;

const TEXTS = {
  unknown: "Connecting",
  ready: "Ready",
  starting: "The model is loading",
  replaced: "The engine is being replaced",
  gone: "No server answers",
  offline: "This device is offline",
};

/** Ask the server how it is, again and again while the page is visible. Call `check` to ask at once. */
export function watchServer(onChange) {
  let state = "unknown";
  let wasReady = false;
  let timer = 0;
  let asking = null;

  async function ask() {
    clearTimeout(timer);
    const next = await stateNow(wasReady);
    wasReady ||= next === "ready";
    if (next !== state) {
      state = next;
      onChange(state, TEXTS[state]);
    }
    if (!document.hidden) timer = setTimeout(check, 1000 * (state === "ready" ? READY_SECONDS : TROUBLE_SECONDS));
    return state;
  }

  /** Return the state now. */
  function check() {
    asking ??= ask().finally(() => (asking = null));
    return asking;
  }

  document.addEventListener("visibilitychange", () => !document.hidden && check());
  addEventListener("online", check);
  addEventListener("offline", check);
  onChange(state, TEXTS[state]);
  check();
  return { check, current: () => state, text: () => TEXTS[state] };
}

async function stateNow(wasReady) {
  try {
    await fetchJson("readyz");
    return "ready";
  } catch (error) {
    if (error.status === 503) return wasReady ? "replaced" : "starting";
    if (error.status) return "ready"; // it answers: requests say what is wrong
    return navigator.onLine ? "gone" : "offline";
  }
}

/** Ask for the API key until the server accepts one; return if it did. Its dialog is loaded with the first call. */
export const askForKey = () => import("./key_dialog.js").then((dialog) => dialog.askForKey(), () => false);
