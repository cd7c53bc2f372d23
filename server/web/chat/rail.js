// The rail: conversations by day, search, rename, delete with undo.
import { button, element } from "../nodes.js";
import { toast } from "../shell/toast.js";
import { dayOf } from "./conversation.js";

const SEARCH_MS = 150;

/** Keep the list of conversations. `onRemoved` is called after the one shown was deleted. */
export function startRail({ store, session, onRemoved }) {
  const list = document.getElementById("conversations");
  const search = document.getElementById("search");
  let all = [];
  let found = null; // IDs, null without a search
  let editing = ""; // ID of the conversation that is being renamed
  let drawn = ""; // what the list shows, so that it is not drawn again under the reader's hands

  async function load() {
    try {
      all = await store.all();
    } catch {
      all = []; // the chat shows that nothing is stored
    }
    draw();
  }

  function draw() {
    if (editing) return;
    const days = new Map();
    for (const one of all) {
      if (found && !found.has(one.id)) continue;
      const day = dayOf(one.updatedAt);
      if (!days.has(day)) days.set(day, []);
      days.get(day).push(one);
    }
    const listed = [...days].map(([day, some]) => [day, ...some.map((one) => `${one.id} ${one.title}`)]);
    const next = JSON.stringify([session.conversation.id, found !== null, listed]);
    if (next === drawn) return;
    drawn = next;
    const groups = [...days].map(([day, some]) => [element("h2", {}, day), element("ul", {}, ...some.map(rowOf))]);
    const text = found ? "Nothing found." : "No conversations yet.";
    list.replaceChildren(...(groups.length ? groups.flat() : [element("p", { class: "meta", role: "status" }, text)]));
  }

  function rowOf(conversation) {
    const isShown = conversation.id === session.conversation.id;
    const title = conversation.title || "Untitled";
    const tool = (text, label, onclick) =>
      button(text, onclick, { class: "quiet more", "aria-label": `${label}: ${title}`, title: label });
    const row = element(
      "li",
      {},
      element("a", { href: `#chat/${conversation.id}`, "aria-current": isShown ? "true" : null, title }, title),
      tool("✎", "Rename", () => rename(conversation, row)),
      tool("✕", "Delete", () => remove(conversation.id)),
    );
    return row;
  }

  function rename(conversation, row) {
    editing = conversation.id;
    const field = element("input", { class: "rename", "aria-label": "Title", maxlength: "200" });
    field.value = conversation.title;
    let isDone = false;
    const finish = async (isKept) => {
      if (isDone) return;
      isDone = true;
      editing = "";
      drawn = "";
      if (isKept && field.value.trim()) await session.rename(conversation.id, field.value.trim());
      await load();
      list.querySelector(`a[href="#chat/${conversation.id}"]`)?.focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.preventDefault();
      event.stopPropagation();
      finish(event.key === "Enter");
    });
    field.addEventListener("blur", () => finish(true));
    row.replaceChildren(field);
    field.select();
  }

  async function remove(id) {
    const isShown = id === session.conversation.id;
    let removed;
    try {
      removed = await session.remove(id);
    } catch (error) {
      return toast(`It could not be deleted: ${error.message}`);
    }
    if (isShown) onRemoved();
    await load();
    toast(`“${removed.conversation.title || "Untitled"}” was deleted.`, "Undo", async () => {
      await session.restore(removed);
      await load();
    });
  }

  let timer = 0;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const text = search.value.trim();
      found = text ? await store.search(text).catch(() => new Set()) : null;
      draw();
    }, SEARCH_MS);
  });
  document.addEventListener("visibilitychange", () => !document.hidden && load()); // another tab may have changed it
  load();
  return { load, draw };
}
