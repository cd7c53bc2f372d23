// Export of all conversations to a file, and import of one.
import { element } from "../nodes.js";
import { toast } from "../shell/toast.js";
import { download, exported, imported } from "./transfer.js";

export async function exportAll(store) {
  const all = await Promise.all((await store.all()).map(({ id }) => store.load(id)));
  const found = all.map(({ conversation, messages }) => ({ conversation, messages: [...messages.values()] }));
  download(`conversations-${new Date().toISOString().slice(0, 10)}.json`, exported(found));
}

/** Let the reader choose a file, and store its conversations. */
export function importFile(store, onImported) {
  const kinds = { type: "file", accept: "application/json,.json" };
  const field = element("input", { ...kinds, class: "for-readers", "aria-label": "Import" });
  field.addEventListener("change", async () => {
    field.remove();
    try {
      await importText(store, await field.files[0].text());
    } catch (error) {
      toast(error.message);
    }
    onImported();
  });
  field.addEventListener("cancel", () => field.remove());
  document.body.append(field);
  field.click();
}

/** Store the conversations of a file; raises an Error that says what is stored of it. */
async function importText(store, text) {
  let count = 0;
  const words = () => (count === 1 ? "1 conversation was imported." : `${count || "No"} conversations were imported.`);
  try {
    for (const { conversation, messages } of imported(text)) {
      await store.save(conversation, messages);
      count++;
    }
  } catch (error) {
    throw new Error(`${words()} ${error.message}`);
  }
  toast(words());
}
