// Shared by all pages: the API key, dark mode, the error line, and functions to read responses.

export const by = (id) => document.getElementById(id);

/** Return the headers of every request: the API key, if there is one. It is stored until the tab is closed. */
export function headers() {
  const key = by("key").value.trim();
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** Show an error, or hide the line if the text is empty. */
export function trouble(text) {
  by("trouble").textContent = text;
  by("trouble").hidden = !text;
}

/** Yield the payloads of a stream of server-sent events. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      pending += value;
      const parts = pending.split("\n\n");
      pending = parts.pop();
      for (const part of parts)
        for (const line of part.split("\n")) if (line.startsWith("data: ")) yield line.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Return the message of an error response. */
export async function complaint(response) {
  if (response.status === 401) return "The server requires an API key. Enter it in the field above.";
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server responded with status ${response.status}.`;
  }
}

/** Set up the key field and the dark mode button; call `onKey` when the key changes. */
export function startFrame(onKey = () => {}) {
  by("key").value = sessionStorage.getItem("key") ?? "";
  by("key").addEventListener("change", () => {
    sessionStorage.setItem("key", by("key").value);
    trouble("");
    onKey();
  });
  const dark = localStorage.getItem("dark") ?? String(matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.classList.toggle("dark", dark === "true");
  by("theme").addEventListener("click", () => {
    localStorage.setItem("dark", String(document.documentElement.classList.toggle("dark")));
  });
}
