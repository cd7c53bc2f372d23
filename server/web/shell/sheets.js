// The rail as a sheet on narrow screens.

/** Connect the button and the shade. `close` returns whether the sheet was open. */
export function startSheets() {
  const rail = document.getElementById("rail");
  const opener = document.getElementById("open-rail");
  const shade = document.getElementById("shade");

  function set(isOpen) {
    rail.classList.toggle("open", isOpen);
    shade.hidden = !isOpen;
    opener.setAttribute("aria-expanded", String(isOpen));
  }

  function close() {
    const wasOpen = rail.classList.contains("open");
    set(false);
    if (wasOpen) opener.focus();
    return wasOpen;
  }

  opener.addEventListener("click", () => {
    set(true);
    document.getElementById("new-chat").focus();
  });
  shade.addEventListener("click", close);
  addEventListener("hashchange", () => set(false));
  return {
    close,
    open() {
      if (opener.checkVisibility()) set(true);
    },
  };
}
