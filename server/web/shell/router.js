// Views by address: #chat/ID, #engine, #learn/LESSON/STOP, #server. Other views than the chat are loaded when they are
// first visited.
import { fetchJson } from "../api.js";
import { element } from "../nodes.js";

const VIEWS = {
  __proto__: null,
  engine: { title: "Engine", load: () => import("../engine/view.js") },
  learn: { title: "Learn", load: () => import("../learn/view.js") },
  server: { title: "Server", load: () => import("../server/view.js") },
};

/**
 * Show the view of the address now and at each change. `onChat` gets the ID in the address, empty for none.
 * Return a function that corrects the address.
 */
export function startRouter({ onChat, onTitle }) {
  const chat = document.getElementById("chat-view");
  const root = document.getElementById("other-view");
  let shown = ""; // name of the view
  let leaving = null; // AbortController of the view shown, none for the chat
  let followed = ""; // the address whose view is shown

  async function show(name) {
    leaving?.abort();
    leaving = null;
    shown = name;
    document.body.dataset.view = name;
    chat.hidden = name !== "chat";
    root.hidden = name === "chat";
    root.replaceChildren();
    for (const link of document.querySelectorAll("#views [data-view]"))
      if (link.dataset.view === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    if (name === "chat") return;
    const { title, load } = VIEWS[name];
    onTitle(title);
    root.setAttribute("aria-label", title);
    const { signal } = (leaving = new AbortController());
    try {
      const { mount } = await load();
      if (!signal.aborted) mount(root, { fetchJson, signal });
    } catch (error) {
      if (signal.aborted) return;
      root.append(element("p", { class: "failure", role: "alert" }, `This view cannot be shown: ${error.message}`));
    }
    if (!signal.aborted) root.focus();
  }

  function follow() {
    followed = location.hash;
    const [name, id = ""] = location.hash.slice(1).split("/");
    const view = name in VIEWS ? name : "chat";
    if (view !== shown) show(view);
    if (view === "chat") onChat(id);
  }

  /** Write another address for the view shown, unless the user has gone on to one that is about to be followed. */
  function correct(address) {
    if (location.hash !== followed || address === followed) return;
    history.replaceState(null, "", address);
    followed = address;
  }

  addEventListener("hashchange", follow);
  follow();
  return correct;
}

/** Return whether the chat is shown. */
export const isChatShown = () => document.body.dataset.view === "chat";
