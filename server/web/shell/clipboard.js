// Copying: pages that came over plain HTTP from another machine have no navigator.clipboard.

/** Copy a text; return whether it worked. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "for-readers";
    document.body.append(field);
    field.select();
    const isCopied = document.execCommand("copy");
    field.remove();
    return isCopied;
  }
}

/** Return a listener that copies what `textOf` returns and says so on its button for two seconds. */
export function copying(textOf) {
  return async ({ currentTarget }) => {
    const before = currentTarget.dataset.label ?? currentTarget.textContent;
    currentTarget.dataset.label = before;
    currentTarget.textContent = (await copy(textOf())) ? "Copied" : "Not copied";
    setTimeout(() => (currentTarget.textContent = before), 2000);
  };
}
