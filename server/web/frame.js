// What every page has: the key, light and dark, a line for what went wrong; and how the server's answers are read.

export const by = (id) => document.getElementById(id);

/** What every request to the server carries: the key, if the user gave one. It is kept until the tab is closed. */
export function headers() {
  const key = by("key").value.trim();
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** Show what went wrong, or nothing. */
export function trouble(text) {
  by("trouble").textContent = text;
  by("trouble").hidden = !text;
}

/** Return the payloads of a stream of server-sent events as they come. */
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

/** Return what an answer that is no success says. */
export async function complaint(response) {
  if (response.status === 401) return "The server wants a key: write it into the field above.";
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answers with status ${response.status}.`;
  }
}

/** Connect the key and the button for light and dark; call `onKey` when the key has changed. */
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
