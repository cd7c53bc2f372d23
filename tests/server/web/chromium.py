"""A headless chromium for tests of the pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright


def chromium_path() -> str | None:
    """Return where it is installed, None if it is not."""
    return shutil.which("chromium")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start it, and end it; meanwhile no other event loop may run in this thread."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        yield browser
        browser.close()
