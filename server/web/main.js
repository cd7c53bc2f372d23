// The page: switches between the chat and the engine view.
import { startChat } from "./chat.js";
import { startEngine } from "./engine.js";
import { by, startFrame } from "./frame.js";

function show(name) {
  for (const view of ["chat", "engine"]) {
    by(view).hidden = view !== name;
    by(`show-${view}`).setAttribute("aria-pressed", String(view === name));
  }
  subscribe();
}

/** Subscribe to the engine while its view is visible. */
function subscribe() {
  engine.subscribe(!by("engine").hidden && !document.hidden);
}

startFrame();
const engine = startEngine();
startChat();
by("show-chat").addEventListener("click", () => show("chat"));
by("show-engine").addEventListener("click", () => show("engine"));
document.addEventListener("visibilitychange", subscribe);
show(location.hash === "#engine" ? "engine" : "chat");
