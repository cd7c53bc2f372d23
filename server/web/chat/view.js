// The chat: the conversation, the composer, and what the reader does with messages.
import { address, ApiError } from "../api.js";
import { button, element } from "../nodes.js";
import { isChatShown } from "../shell/router.js";
import { askForKey } from "../shell/server_state.js";
import { announce, toast } from "../shell/toast.js";
import { makeComposer } from "./composer.js";
import { contextMeter } from "./context_meter.js";
import { siblings } from "./conversation.js";
import { followScroll } from "./follow_scroll.js";
import { MessageList } from "./message_list.js";
import { chipText, servedModels } from "./models.js";
import { notice } from "./notice.js";
import { Session } from "./session.js";
import { readSettings } from "./settings.js";
import { welcome } from "./welcome.js";

const ENDS = { stop: "The answer is complete.", stopped: "Stopped.", limit: "The answer was cut at its limit." };

/** Build the chat in its view. `onSaved` is called when a conversation was stored, `onChange` when another is shown. */
export function startChat({ store, server, onSaved, onChange }) {
  const root = document.getElementById("chat-view");
  const banner = element("div", { class: "banner", id: "banner" });
  const content = element("div", { class: "column" });
  const region = { tabindex: "0", role: "region", "aria-label": "Conversation" };
  const scroller = element("div", { class: "scroller", id: "scroller", ...region }, content);
  const newest = button("↓ Newest", () => scroll.follow(), { class: "newest", id: "newest", hidden: true });
  const hasKeyboard = matchMedia("(pointer: fine)").matches; // elsewhere the focus would cover half of the screen
  let isStorageReported = false;
  let models = [];
  let loading = null; // the promise of loadModels

  const session = new Session(store, server, {
    onPath: () => draw(),
    onModelNeeded: loadModels,
    onText(message) {
      if (message !== session.running) return;
      list.drawSoon(message);
      meter.grow();
    },
    onReport: (message, text) => list.report(message, text),
    onEnd(message) {
      draw();
      announce(ENDS[message.end.kind] ?? "The answer ended early.");
    },
    onSaved,
    onStorageFailure(error) {
      if (isStorageReported) return;
      isStorageReported = true;
      const isFull = error.name === "QuotaExceededError";
      const text = isFull ? "The browser's storage is full" : "The browser did not store this conversation";
      const rest = `it is lost when the page is closed.${isFull ? " Delete others to keep it." : ""}`;
      banner.append(notice("warn", `${text}: ${rest}`));
    },
  });
  const list = new MessageList(session, act);
  const composer = makeComposer({
    onSend: send,
    onStop: () => session.stop(),
    onDraft: () => meter.recount(),
  });
  const meter = contextMeter(session, composer.draft, composer.setContext);
  const scroll = followScroll(scroller, content, (isAway) => (newest.hidden = !isAway));
  root.append(banner, scroller, element("div", { class: "foot" }, newest, composer.node));

  function draw() {
    const { conversation, running } = session;
    list.draw();
    const isEmpty = !conversation.leaf;
    if (isEmpty) content.replaceChildren(welcome(session.model, send));
    else if (content.firstChild !== list.node) content.replaceChildren(list.node); // else the focus would be lost
    composer.setRunning(running !== null);
    meter.recount();
    onChange();
  }

  function send(text) {
    session.send(text);
    scroll.follow();
  }

  /** Do what a button at a message says. The button is gone then: the focus goes to what stands in its place. */
  async function act(name, message, value) {
    if (name === "edit") {
      const text = await list.edit(message);
      if (text === null) return list.focus(message, "edit");
      if (session.running) composer.set(text); // an answer is being written meanwhile: nothing is lost
      else session.send(text, message);
      if (hasKeyboard) composer.focus();
      else list.focus(session.path.at(-1));
    } else if (name === "turn") {
      const versions = siblings(session.messages, message);
      const shown = versions[versions.indexOf(message) + value];
      session.show(shown);
      list.focus(shown, value > 0 ? "next" : "previous");
    } else if (name === "tokens" || name === "timing") inspect(name, message);
    else {
      if (name === "regenerate") session.regenerate(message);
      else if (name === "goOn") session.goOn(message);
      else
        await import("./shorten.js")
          .then(({ shorten }) => shorten(session, message))
          .catch((error) => toast(error.message));
      list.focus(session.path.at(-1));
    }
  }

  /** Show a part of the inspector (tokens, timing, request) for a message, by default the last answer. */
  async function inspect(part, message = session.path.findLast((one) => one.role === "assistant")) {
    const { openInspector } = await import("./inspector.js");
    const messages = message ? session.messagesFor(message) : [];
    openInspector(part, message, { messages, url: address("v1/chat/completions") });
  }

  /** Read which models the server has; ask for a key if it wants one. */
  function loadModels() {
    loading ??= readModels().finally(() => (loading = null));
    return loading;
  }

  async function readModels() {
    try {
      models = await servedModels();
    } catch (error) {
      if (error instanceof ApiError && error.status === 401 && (await askForKey())) await readModels();
      return; // what needs a model asks again
    }
    chooseModel();
  }

  function chooseModel() {
    const { model } = readSettings();
    session.model = models.find((one) => one.name === model) ?? models[0];
    const chip = document.getElementById("model-chip");
    const { name } = session.model;
    const text = chipText(session.model);
    chip.replaceChildren(name, element("span", {}, text.slice(name.length))); // on a phone the name only
    chip.title = `${text}. Settings`;
    draw();
  }

  store.isKept.then((isKept) => {
    const text = "The browser denies storage: conversations are lost when the page is closed.";
    if (!isKept) banner.append(notice("warn", text));
  });
  draw();
  scroll.follow();
  if (hasKeyboard) composer.focus();
  return {
    session,
    loadModels,
    models: () => models,
    /** Take over changed settings. */
    onSettings: () => models.length && chooseModel(),
    /** Show the conversation of an address, or a new one if it does not exist; return whether it does. Empty: new. */
    async open(id) {
      const isThere = !id || (await session.open(id).catch(() => false));
      if (!isThere) toast("This conversation is not in this browser.");
      if (!isThere || (!id && session.messages.size)) session.start();
      scroll.follow();
      if (isChatShown() && hasKeyboard) composer.focus();
      return isThere;
    },
    /** Stop the answer; return whether there was one. */
    stop() {
      const isRunning = session.running !== null;
      session.stop();
      return isRunning;
    },
    inspect,
    move: (way) => list.move(way),
    focus: () => composer.focus(),
  };
}
