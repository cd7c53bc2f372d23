// How full the context is: counted by the server a moment after a change, and on from there while an answer is written.
import { countTokens } from "./models.js";

const DELAY_MS = 400;

/**
 * Return `recount`, to call after each change of the conversation or of the draft, and `grow`, to call when an answer
 * has become longer. `show(tokens, limit)` draws.
 */
export function contextMeter(session, draftOf, show) {
  let timer = 0;
  let asking = null;
  let numPrompt = null; // of the answer that is being written; null if it is not counted yet

  async function count() {
    asking?.abort();
    const { signal } = (asking = new AbortController());
    const { model, running } = session;
    const messages = running ? session.messagesFor(running) : session.messagesFor(null, { draft: draftOf() });
    if (!messages.length || !model) return show(messages.length ? null : 0, model?.maxModelLen);
    try {
      const tokens = await countTokens(model.name, messages, signal);
      if (signal.aborted) return;
      if (!running) return show(tokens, model.maxModelLen);
      numPrompt = tokens;
      grow();
    } catch {
      if (!signal.aborted) show(null, 0); // the server is away, or the model has no chat template
    }
  }

  function grow() {
    const { running, model } = session;
    if (numPrompt !== null && running && model) show(numPrompt + (running.tokens?.length ?? 0), model.maxModelLen);
  }

  return {
    recount() {
      clearTimeout(timer);
      asking?.abort();
      numPrompt = null;
      timer = setTimeout(count, DELAY_MS);
    },
    grow,
  };
}
