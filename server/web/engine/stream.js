// The stream of snapshots: connects while the page is visible, and again when the connection is lost.
import { events, request } from "../api.js";
import { askForKey } from "../shell/key_dialog.js";

const RETRY_MS = 1000;

/** Call `onView` with each snapshot and `onTrouble` with a text, empty when all is well, until `signal` is aborted. */
export async function follow({ onView, onTrouble, signal }) {
  while (!signal.aborted) {
    await visible(signal);
    const hidden = new AbortController();
    const hide = () => document.hidden && hidden.abort();
    document.addEventListener("visibilitychange", hide);
    const either = AbortSignal.any([signal, hidden.signal]);
    try {
      const response = await request("v1/engine/events", { signal: either });
      onTrouble("");
      for await (const payload of events(response)) {
        if (either.aborted) break;
        onView(JSON.parse(payload));
      }
      if (!either.aborted) onTrouble("The server closed the connection.");
    } catch (error) {
      if (!either.aborted) {
        onTrouble(error.message);
        if (error.status === 401) await askForKey();
      }
    } finally {
      document.removeEventListener("visibilitychange", hide);
    }
    if (!either.aborted) await new Promise((done) => setTimeout(done, RETRY_MS));
  }
}

/** Wait until the page is visible: a hidden page must not cost anything. */
function visible(signal) {
  if (!document.hidden || signal.aborted) return Promise.resolve();
  return new Promise((done) => {
    document.addEventListener("visibilitychange", () => done(), { once: true });
    signal.addEventListener("abort", () => done(), { once: true });
  });
}
