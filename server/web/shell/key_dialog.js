// The dialog for the API key, when the server wants one or does not know the one it got.
import { ApiError, apiKey, fetchJson, setApiKey } from "../api.js";
import { button, element } from "../nodes.js";

let asking = null; // the promise of the dialog that is open

/** Ask for the API key until the server accepts one; return whether it did. Several callers share one dialog. */
export function askForKey() {
  asking ??= ask().finally(() => (asking = null));
  return asking;
}

function ask() {
  const wrong = element("p", { class: "wrong", role: "alert" }, apiKey() ? "This key is not known to the server." : "");
  const input = element("input", { type: "password", id: "key", autocomplete: "off", required: true, autofocus: true });
  return new Promise((done) => {
    const dialog = element(
      "dialog",
      {
        "aria-labelledby": "key-title",
        onclose: () => {
          dialog.remove();
          done(dialog.returnValue === "accepted");
        },
      },
      element("h2", { id: "key-title" }, "This server needs an API key"),
      element(
        "form",
        { class: "fields", onsubmit: check },
        element("label", { for: "key" }, "API key", input),
        element("p", { class: "meta" }, "It is kept until this tab is closed, and sent to this server only."),
        wrong,
        element(
          "div",
          { class: "end" },
          button("Cancel", () => dialog.close("")),
          element("button", { class: "primary" }, "Use this key"),
        ),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();

    async function check(event) {
      event.preventDefault();
      if (/[^\x00-\xff]/.test(input.value)) {
        wrong.textContent = "No request can carry a key with such characters.";
        return;
      }
      const before = apiKey();
      setApiKey(input.value);
      try {
        await fetchJson("v1/models");
        dialog.close("accepted");
      } catch (error) {
        setApiKey(before);
        const isUnknown = error instanceof ApiError && error.status === 401;
        wrong.textContent = isUnknown ? "This key is not known to the server." : error.message;
      }
    }
  });
}
