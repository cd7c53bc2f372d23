// The browser's storage of texts. Where it is denied or full, texts are kept until the page is closed.

/** Return `get`, `set` and `remove` of "localStorage" or "sessionStorage"; none of them raises an error. */
function guarded(name) {
  const unstored = new Map();
  return {
    /** Return the text of a key, null if there is none. */
    get(key) {
      if (unstored.has(key)) return unstored.get(key);
      try {
        return globalThis[name].getItem(key);
      } catch {
        return null;
      }
    },
    set(key, text) {
      try {
        globalThis[name].setItem(key, text);
        unstored.delete(key);
      } catch {
        unstored.set(key, text);
      }
    },
    remove(key) {
      unstored.delete(key);
      try {
        globalThis[name].removeItem(key);
      } catch {
        // Nothing was stored.
      }
    },
  };
}

export const ofBrowser = guarded("localStorage");
export const ofTab = guarded("sessionStorage"); // until the tab is closed
