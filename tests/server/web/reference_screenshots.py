"""`python -m tests.server.web.reference_screenshots FOLDER`: each state of the page at three widths, in both themes.

The pictures are for people: look at each after a change. `test_reference_states.py` checks what a program can.
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import expect

from tests.server.web.chromium import chromium
from tests.server.web.reference_states import STATES, servers

SIZES = {"phone": (390, 844), "tablet": (820, 1180), "desktop": (1280, 900)}


def main(folder: Path, only: frozenset[str]) -> None:
    """Write them to a folder; `only` has names of states, none for all."""
    folder.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=30_000)
    with tempfile.TemporaryDirectory() as scratch, servers(Path(scratch)) as both, chromium() as browser:
        for state in STATES:
            if only and state.__name__ not in only:
                continue
            for size, (width, height) in SIZES.items():
                context = browser.new_context(
                    viewport={"width": width, "height": height}, color_scheme="light", has_touch=size != "desktop"
                )
                page = context.new_page()
                state(page, both)
                for theme in ("light", "dark"):
                    page.emulate_media(color_scheme=theme)
                    page.wait_for_timeout(150)  # for the next frame of the charts
                    page.screenshot(path=folder / f"{state.__name__}-{size}-{theme}.png")
                context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), frozenset(sys.argv[2:]))
