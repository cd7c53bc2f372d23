// The page: which view is shown.
import { startChat } from "./chat.js";
import { startEngine } from "./engine.js";
import { by, startFrame } from "./frame.js";

function show(name) {
  for (const view of ["chat", "engine"]) {
    by(view).hidden = view !== name;
    by(`show-${view}`).setAttribute("aria-pressed", String(view === name));
  }
  watch();
}

/** Watch the engine while it can be seen. */
function watch() {
  engine.watch(!by("engine").hidden && !document.hidden);
}

startFrame();
const engine = startEngine();
startChat();
by("show-chat").addEventListener("click", () => show("chat"));
by("show-engine").addEventListener("click", () => show("engine"));
document.addEventListener("visibilitychange", watch);
show(location.hash === "#engine" ? "engine" : "chat");
