// The theme: auto follows the system. saved_theme.js sets it before the first paint.
import { ofBrowser } from "./storage.js";

const NAME = "theme";

export const THEMES = ["auto", "light", "dark"];

export const chosenTheme = () => ofBrowser.get(NAME) ?? "auto";

export function setTheme(name) {
  if (name === "auto") {
    ofBrowser.remove(NAME);
    delete document.documentElement.dataset.theme;
  } else {
    ofBrowser.set(NAME, name);
    document.documentElement.dataset.theme = name;
  }
}

/** Change from light to dark, or back. */
export function turnTheme() {
  const isSystemDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const shown = chosenTheme() === "auto" ? (isSystemDark ? "dark" : "light") : chosenTheme();
  setTheme(shown === "dark" ? "light" : "dark");
}
