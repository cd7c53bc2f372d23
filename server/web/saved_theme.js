// Runs before the first paint: the theme that was chosen earlier. Without one, the system's holds.
{
  let theme;
  try {
    theme = localStorage.getItem("theme");
  } catch {
    // The browser denies its storage.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
}
