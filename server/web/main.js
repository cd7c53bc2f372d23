// The page: shell, chat and rail, connected.
import { openStore } from "./chat/conversation_store.js";
import { startRail } from "./chat/rail.js";
import { startChat } from "./chat/view.js";
import { isChatShown, startRouter } from "./shell/router.js";
import { watchServer } from "./shell/server_state.js";
import { showShortcuts, startShortcuts } from "./shell/shortcuts.js";
import { startSheets } from "./shell/sheets.js";
import { ofBrowser } from "./shell/storage.js";

const by = (id) => document.getElementById(id);

async function start() {
  const store = openStore();
  const sheets = startSheets();
  let chat = null;
  let rail = null;
  let correctAddress = null;

  const server = watchServer((state, text) => {
    const [dot, words] = by("server-state").children;
    dot.dataset.state = state;
    words.textContent = text;
    if (state === "ready" && chat && !chat.session.model) chat.loadModels();
  });

  function setTitle(title) {
    by("title").textContent = title;
    document.title = `${title} · Caravan`;
  }

  /** Keep title, list and address those of the conversation that is shown. */
  function onConversation() {
    if (!rail || !isChatShown()) return;
    setTitle(chat.session.conversation.title || "New chat");
    rail.draw();
    const { conversation, messages } = chat.session;
    const address = messages.size ? `#chat/${conversation.id}` : "#chat";
    document.querySelector('#views [data-view="chat"]').href = address;
    if (messages.size) correctAddress?.(address);
  }

  async function openConversation(id) {
    if (!(await chat.open(id))) correctAddress("#chat");
    onConversation();
  }

  function newChat() {
    if (location.hash === "#chat") chat.focus();
    else location.hash = "#chat";
  }

  async function openSettings() {
    const [dialog, files] = await Promise.all([import("./chat/settings_dialog.js"), import("./chat/files.js")]);
    dialog.openSettings({
      session: chat.session,
      models: chat.models(),
      onChange: () => (chat.models().length ? chat.onSettings() : chat.loadModels()),
      onFile: (action) => (action === "export" ? files.exportAll(store) : files.importFile(store, () => rail.load())),
    });
  }

  async function inspector() {
    if (by("inspector").hidden) return chat.inspect("tokens");
    (await import("./chat/inspector.js")).closeInspector();
  }

  function stop() {
    if ((isChatShown() && chat.stop()) || sheets.close()) return true;
    if (by("inspector").hidden) return false;
    inspector();
    return true;
  }

  if (ofBrowser.get("messages") && (await store.isKept))
    await import("./chat/earlier_page.js").then(({ takeOver }) => takeOver(store)).catch(() => {}); // it stays there
  chat = startChat({ store, server, onChange: onConversation, onSaved: () => rail?.load() });
  rail = startRail({ store, session: chat.session, onRemoved: () => (location.hash = "#chat") });
  correctAddress = startRouter({ onChat: openConversation, onTitle: setTitle });
  startShortcuts({
    stop,
    newChat,
    search() {
      sheets.open();
      by("search").focus();
    },
    move: (way) => isChatShown() && chat.move(way),
  });
  by("new-chat").addEventListener("click", newChat);
  by("open-settings").addEventListener("click", openSettings);
  by("model-chip").addEventListener("click", openSettings);
  by("open-inspector").addEventListener("click", inspector);
  by("open-shortcuts").addEventListener("click", showShortcuts);
  by("skip").addEventListener("click", (event) => {
    event.preventDefault();
    chat.focus();
  });
  if (server.current() === "ready") chat.loadModels();
}

start();
