"""`python -m tests.server.web.screenshots [VIEW...]`: the screenshots in docs/figures, light and dark, of a real model.

Look at each: the answers must be right, so the questions are ones that the default model answers well.
"""

import sys
from pathlib import Path
from typing import Literal

from playwright.sync_api import Page, expect

from caravan.download.resolve import resolve_model
from tests.server.web.chromium import chromium
from tests.support.running_server import RunningServer, running_server

FIGURES = Path(__file__).parents[3] / "docs" / "figures"
POOL_BYTES = 400 * 2 * 30 * 3 * 64 * 2 * 16  # of 400 blocks of the default model
WIDTH, HEIGHT = 1200, 760
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
PATIENCE_MS = 60_000


def main(views: list[str]) -> None:
    """Take the pictures of the views that are named, of all without a name."""
    options = ["--served-model-name", "smollm2", "--kv-cache-memory", str(POOL_BYTES), "--max-model-len", "2048"]
    expect.set_options(timeout=PATIENCE_MS)
    with running_server(resolve_model("smollm2", print), *options) as server, chromium() as browser:
        for view in views or VIEWS:
            context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
            page = context.new_page()
            page.set_default_timeout(PATIENCE_MS)
            page.goto(server.url)
            page.evaluate("localStorage.setItem('settings', JSON.stringify({temperature: 0}))")
            VIEWS[view](page, server)
            for theme in THEMES:
                page.emulate_media(color_scheme=theme)
                page.wait_for_timeout(300)  # for the next frame of the charts
                page.screenshot(path=FIGURES / f"page-{view}-{theme}.png")
            context.close()  # ends what it asked for


def _ask(page: Page, question: str) -> None:
    page.fill("#message", question)
    page.keyboard.press("Enter")
    expect(page.locator(".message.assistant .facts").last).to_be_visible()


def _chat(page: Page, server: RunningServer) -> None:
    """An answer with code."""
    _ask(page, "Write a Python function that says whether a number is even.")
    expect(page.locator(".message.assistant .text")).to_contain_text("return num % 2 == 0")
    expect(page.locator(".code-keyword").first).to_be_visible()


def _tokens(page: Page, server: RunningServer) -> None:
    """The probability of each token of an answer, and what else could have been drawn."""
    _ask(page, "What is the capital of France?")
    page.locator(".message.assistant button", has_text="Tokens").click()
    page.locator(".token", has_text="Paris").click()
    expect(page.locator("#token-details")).to_contain_text("Paris")


def _engine(page: Page, server: RunningServer) -> None:
    """The engine in the middle of ten requests."""
    page.set_viewport_size({"width": WIDTH, "height": 1150})
    page.goto(f"{server.url}/#engine")
    page.select_option(".scrubber select", "10")
    expect(page.locator(".engine-view output")).to_contain_text("Step")

    for index in range(5):  # a browser has six connections to a server; the sixth is the view's own
        page.evaluate(
            """([index, shared]) => {
                const prompt = [2 * index, 2 * index + 1].map((number) => `${shared} ${number}`);
                const body = { model: "smollm2", prompt, max_tokens: 450 + 60 * index, ignore_eos: true };
                const headers = { "content-type": "application/json" };
                fetch("/v1/completions", { method: "POST", headers, body: JSON.stringify(body) }).catch(() => {});
            }""",
            [index, "A long beginning that all of them share, so that it is computed once. " * 6],
        )
        page.wait_for_timeout(900 + 300 * index)  # so that they join one after the other
    expect(page.locator(".requests tbody tr").nth(8)).to_be_visible()
    page.locator(".scrubber .pause").click()
    page.locator(".scrubber .back").click()


def _learn(page: Page, server: RunningServer) -> None:
    """The probabilities of what follows a sentence."""
    page.set_viewport_size({"width": WIDTH, "height": 900})
    page.goto(f"{server.url}/#learn/draw")
    page.fill("#learn-text", "The capital of France is Paris. The capital of Italy is")
    page.locator(".learn-form button").click()
    page.locator(".guess button", has_text="It gets less likely").click()
    expect(page.locator(".bars li").first).to_contain_text("Rome")


VIEWS = {"chat": _chat, "tokens": _tokens, "engine": _engine, "learn": _learn}

if __name__ == "__main__":
    main(sys.argv[1:])
