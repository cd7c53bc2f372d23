"""`python -m tests.server.web.screenshots`: the screenshots in docs/figures, light and dark."""

import threading
from pathlib import Path

from playwright.sync_api import Browser, expect

from caravan.download.resolve import resolve_model
from tests.server.web.chromium import chromium
from tests.support.running_server import RunningServer, running_server

FIGURES = Path(__file__).parents[3] / "docs" / "figures"
POOL_BYTES = 400 * 2 * 30 * 3 * 64 * 2 * 16  # of 400 blocks of the default model


def main() -> None:
    """Take four pictures."""
    options = ["--served-model-name", "smollm2", "--kv-cache-memory", str(POOL_BYTES), "--max-model-len", "2048"]
    with (
        running_server(resolve_model("smollm2", print), *options) as server,
        chromium() as browser,
    ):
        for theme in ("light", "dark"):
            _chat(browser, server, theme)
            _engine(browser, server, theme)


def _chat(browser: Browser, server: RunningServer, theme: str) -> None:
    page = browser.new_page(viewport={"width": 900, "height": 760}, color_scheme=theme)  # type: ignore[arg-type]
    page.goto(server.url)
    page.fill("#temperature", "0")
    page.fill("#max-tokens", "120")
    page.fill("#question", "Why do caravans rest at noon? Answer in three short points.")
    page.click("#send")
    expect(page.locator(".message.assistant .facts")).to_be_visible(timeout=60_000)
    page.check("#token-view")
    page.locator(".token").nth(8).hover()
    page.screenshot(path=FIGURES / f"page-chat-{theme}.png")
    page.close()


def _engine(browser: Browser, server: RunningServer, theme: str) -> None:
    page = browser.new_page(viewport={"width": 900, "height": 1000}, color_scheme=theme)  # type: ignore[arg-type]
    page.goto(f"{server.url}/#engine")

    def ask(index: int) -> None:
        prompt = "A long beginning that all of them share, so that it is computed once. " * 6
        body = {"model": "smollm2", "prompt": f"{prompt} {index}", "max_tokens": 150 + 40 * index, "ignore_eos": True}
        server.http.post("/v1/completions", json=body)

    asking = [threading.Thread(target=ask, args=(index,)) for index in range(9)]
    for thread in asking:
        thread.start()
    expect(page.locator("#batch tr").nth(7)).to_be_visible(timeout=30_000)
    page.wait_for_timeout(2500)
    page.click("#pause")
    page.locator("#events button").first.click()
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=FIGURES / f"page-engine-{theme}.png")
    for thread in asking:
        thread.join()
    page.close()


if __name__ == "__main__":
    main()
