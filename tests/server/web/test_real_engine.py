"""The engine view over a real engine, with an API key."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.web.open_page import complaints_of
from tests.support.browser_page import IN_BROWSER
from tests.support.running_server import RunningServer, running_server

pytestmark = [*IN_BROWSER, pytest.mark.slow]

KEY = "the-key-of-the-page"


@pytest.fixture
def server(real_model_path: Path) -> Iterator[RunningServer]:
    # 96 blocks: a few long answers fill them
    options = ["--served-model-name", "smollm2", "--kv-cache-memory", str(96 * 2 * 30 * 3 * 64 * 2 * 16)]
    with running_server(real_model_path, *options, "--max-model-len", "1024", "--api-key", KEY) as running:
        running.http.headers["authorization"] = f"Bearer {KEY}"
        yield running


@pytest.fixture
def page(browser: Browser, server: RunningServer) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints = complaints_of(page)
    page.add_init_script(f"sessionStorage.setItem('key', '{KEY}')")
    page.goto(f"{server.url}/#engine")
    yield page
    page.close()
    assert complaints == []


def test_prefix_hits_preemptions_and_each_step_of_a_real_engine_are_shown(page: Page, server: RunningServer) -> None:
    summary = page.locator(".engine-view .panel .meta", has_text="blocks in use")
    expect(summary).to_contain_text("0 of 96 blocks in use")

    def ask(index: int) -> None:
        prompt = "A long beginning that all of them share, word for word, so that it is computed once. " * 3
        body = {"model": "smollm2", "prompt": f"{prompt} {index}", "max_tokens": 400, "ignore_eos": True}
        server.http.post("/v1/completions", json=body)

    asking = [threading.Thread(target=ask, args=(index,)) for index in range(6)]
    for thread in asking:
        thread.start()
    expect(page.locator(".requests tbody tr").first).to_contain_text("answering")
    expect(summary).to_contain_text(re.compile(r"[1-9]\d* of 96 blocks in use"))
    events = page.locator(".events")
    expect(events).to_contain_text(re.compile(r"\d+ starts: prefix hit, [1-9]\d* tokens"))
    page.get_by_label("Show").select_option("preemptions")
    expect(events).to_contain_text("is preempted")
    page.locator(".scrubber .pause").click()
    output = page.locator(".scrubber output")
    found = re.match(r"Step ([\d,]+)", output.inner_text())
    assert found
    number = int(found[1].replace(",", ""))
    for earlier in range(number - 1, number - 4, -1):
        page.locator(".scrubber .back").click()
        expect(output).to_contain_text(f"Step {earlier:,}:")
    expect(page.locator(".panel.table h2")).to_contain_text("Block table of request")
    page.locator(".panel.table tbody button").first.click()
    expect(page.locator("#explained")).to_contain_text(re.compile(r"Hash\s*[0-9a-f]{8}"))
    page.keyboard.press("Escape")
    page.locator(".scrubber .pause").click()
    for thread in asking:
        thread.join()
    expect(page.locator(".requests")).to_contain_text("No requests.")
    expect(summary).to_contain_text("0 of 96 blocks in use")
