// The lessons: #learn/NAME/N. One sentence of the reader goes through those that show the model.
import { address } from "../api.js";
import { element } from "../nodes.js";
import { askForKey } from "../shell/key_dialog.js";
import { EXAMPLES } from "./examples.js";

const LESSONS = {
  walk: { title: "From text to token", load: () => import("./walk.js"), isOfTrace: true },
  heads: { title: "Heads", load: () => import("./heads.js"), isOfTrace: true },
  lens: { title: "Layer by layer", load: () => import("./lens.js"), isOfTrace: true },
  draw: { title: "The draw", load: () => import("./draw.js"), isOfTrace: true },
  paging: { title: "Paging", load: () => import("./paging.js") },
  batching: { title: "Batching", load: () => import("./batching.js") },
  kill: { title: "Kill the engine", load: () => import("./kill.js"), isLive: true },
  slow: { title: "Why was it slow?", load: () => import("./slow.js") },
  code: { title: "Read the code", load: () => import("./reading.js") },
};

/** Show the lessons in `root` until `signal` is aborted. Without a server `fetchJson` has recorded answers only. */
export function mount(root, { fetchJson, signal, hasServer = true }) {
  const state = { text: EXAMPLES.text, isChat: false, layer: 0, head: 0, trace: null, guesses: new Map() };
  const lesson = element("section", { class: "lesson", tabindex: "-1" });
  const links = Object.entries(LESSONS).map(([name, { title }]) =>
    element("a", { href: `#learn/${name}`, "data-lesson": name }, title),
  );
  const status = element("p", { class: "learn-status", role: "status" });
  const text = element("textarea", { id: "learn-text", rows: "2", maxlength: "4000", readonly: !hasServer });
  text.value = state.text;
  const isChat = element("input", { type: "checkbox", id: "learn-chat" });
  const run = element("button", { class: "primary", type: "submit" }, "Run");
  const form = element(
    "form",
    { class: "learn-form", onsubmit: (event) => (event.preventDefault(), start()) },
    element("label", { for: "learn-text" }, hasServer ? "Your text, at most 64 tokens" : "The text that was recorded"),
    text,
    element(
      "div",
      { class: "learn-row" },
      element("label", {}, isChat, " as a message to a chat model"),
      run,
    ),
  );
  root.append(
    element("link", { rel: "stylesheet", href: address("web/learn/learn.css") }),
    element("div", { class: "learn" }, element("nav", { "aria-label": "Lessons" }, links), form, status, lesson),
  );
  let place = []; // lesson and stop of the address
  let drawing = 0; // the latest call of draw
  let asking = null; // AbortController of the latest trace

  function start() {
    state.guesses.clear();
    ask({ text: text.value, isChat: isChat.checked, layer: state.layer, head: state.head });
  }

  /** Trace the text with changes to what is shown; the lesson is drawn again with the result. */
  async function ask(changes) {
    const asked = { ...state, ...changes };
    const body = { text: asked.text, is_chat: asked.isChat, layer: asked.layer, head: asked.head };
    asking?.abort();
    const { signal: isReplaced } = (asking = new AbortController());
    run.disabled = true;
    const stop = sayHowLong(state.trace === null && hasServer);
    try {
      const trace = await fetchJson("v1/learn/trace", { body, signal: AbortSignal.any([signal, isReplaced]) });
      if (isReplaced.aborted) return;
      Object.assign(state, changes, { trace });
      stop();
    } catch (error) {
      if (signal.aborted || isReplaced.aborted) return;
      stop();
      if (error.status === 401 && (await askForKey())) return ask(changes);
      say(error.message, true);
    } finally {
      if (!isReplaced.aborted) run.disabled = false;
    }
    if (LESSONS[place[0]].isOfTrace) draw(); // others keep what the reader did there meanwhile
  }

  /** Show how long the trace takes until the function that is returned is called. */
  function sayHowLong(isFirst) {
    const began = performance.now();
    const seconds = () => ((performance.now() - began) / 1000).toFixed(1);
    const words = isFirst ? "The model is loaded for this, then computes" : "The model computes";
    say(`${words}.`);
    const timer = setInterval(() => say(`${words}: ${seconds()} s so far.`), 500);
    for (const one of [signal, asking.signal]) one.addEventListener("abort", () => clearInterval(timer));
    return () => {
      clearInterval(timer);
      say(hasServer ? `It took ${seconds()} s${isFirst ? ", with the time to load the model" : ""}.` : "");
    };
  }

  function say(words, isFailure = false) {
    status.textContent = words;
    status.classList.toggle("failure", isFailure);
  }

  async function draw() {
    const number = ++drawing;
    const [name, stop] = place;
    const { load, isOfTrace = false, isLive = false } = LESSONS[name];
    for (const link of links)
      if (link.dataset.lesson === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    form.hidden = status.hidden = !isOfTrace;
    if (isOfTrace && !state.trace) return lesson.replaceChildren(...welcome());
    if (isLive && !hasServer) return lesson.replaceChildren(...needsServer(LESSONS[name].title));
    try {
      const { show } = await load();
      if (signal.aborted || number !== drawing) return;
      const hadFocus = lesson.contains(document.activeElement);
      lesson.replaceChildren();
      show(lesson, { state, stop, ask, draw, fetchJson, hasServer, signal });
      if (hadFocus) (lesson.querySelector(".heads [aria-pressed='true']") ?? lesson).focus({ preventScroll: true });
    } catch (error) {
      if (signal.aborted) return;
      status.hidden = false;
      say(`This lesson cannot be shown: ${error.message}`, true);
    }
  }

  function follow() {
    const [view, name = "walk", stop = "1"] = location.hash.slice(1).split("/");
    if (view !== "learn" && hasServer) return;
    const known = Object.hasOwn(LESSONS, name) ? name : "walk";
    const isMove = place.length > 0;
    place = [known, Math.trunc(Number(stop)) || 1];
    draw().then(() => isMove && !signal.aborted && lesson.focus({ preventScroll: true }));
  }

  addEventListener("hashchange", follow, { signal });
  follow();
}

function welcome() {
  return [
    element("h2", {}, "Watch a model read"),
    element(
      "p",
      {},
      "Write a text and press Run. The model that this server serves computes it once, slowly and in plain PyTorch, " +
        "and every number on the next pages is one of that pass. Each stop asks for a guess first.",
    ),
  ];
}

function needsServer(title) {
  return [
    element("h2", {}, title),
    element("p", {}, "This lesson needs a server. Start one, and open its page at #learn:"),
    element("pre", {}, element("code", {}, "caravan serve smollm2")),
  ];
}
