"""The lessons that show the server, over a tiny model, and the copy of all lessons that needs no server."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from docs.learn_site import main as write_site
from tests.server.web.open_page import FAILED_LOADS, complaints_of, go_to_lesson
from tests.support.browser_page import SLOW_BROWSER
from tests.support.running_server import RunningServer, running_server

pytestmark = SLOW_BROWSER


@pytest.fixture(scope="module")
def server(tiny_model_path: Path) -> Iterator[RunningServer]:
    with running_server(tiny_model_path, "--served-model-name", "tiny", "--kv-cache-memory", "16MiB") as running:
        yield running


@pytest.fixture(scope="module")
def site(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy of the lessons, written in a thread of its own: in this one the browser's event loop runs."""
    folder = tmp_path_factory.mktemp("site") / "site"
    with ThreadPoolExecutor(1) as threads:
        threads.submit(write_site, server.url, folder).result()
    return folder


@contextmanager
def lessons(browser: Browser, url: str) -> Iterator[Page]:
    """Open a page, which must have no complaints at the end."""
    page = browser.new_page()
    complaints = complaints_of(page)
    page.goto(url)
    yield page
    page.close()
    assert [text for text in complaints if not text.startswith(FAILED_LOADS)] == []  # a killed engine is not ready


def numbers(row: Locator) -> list[str]:
    return row.locator("td").all_inner_texts()


def see_paging(page: Page, *, is_small: bool) -> None:
    """Cut requests into blocks, and look at the pool and at its steps."""
    go_to_lesson(page, "Paging")
    if is_small:
        page.fill("#learn-lines", "a\n" * 9)
        page.get_by_role("button", name="Cut into blocks").click()
        expect(page.locator(".failure[role=alert]")).to_have_text("These are 9 requests, and 8 is the limit.")
        page.fill("#learn-lines", "aaaabbbb\naaaabbbbcc\nxyz")
    page.get_by_role("button", name="Cut into blocks").click()
    expect(page.locator(".guess")).to_contain_text("3 requests, 4 tokens in a block")
    expect(page.locator(".pool-blocks")).to_have_count(0)
    page.locator(".guess button").first.click()
    expect(page.locator(".pool-blocks li").first).to_be_visible()
    row = page.locator("tr[aria-current='true']")
    if is_small:
        expect(page.locator(".verdict")).to_have_text(re.compile("2 of the 9 blocks"))
        expect(page.locator(".block.shared")).to_have_count(2)
        expect(page.locator(".block.shared").first).to_have_text(re.compile("request 1, 2a a a a"))
        expect(page.locator("div > .prefix-tree > li")).to_have_count(1)
        expect(page.locator(".prefix-tree li")).to_have_count(2)
        before = numbers(row)
        page.get_by_label("tokens in the pool").press("Home")
        expect(row.locator("td").nth(4)).not_to_have_text("0")  # a full pool preempts
        assert numbers(row) != before
        page.get_by_role("button", name="To the next preemption").click()
        expect(page.locator(".lesson")).to_contain_text("Preempted to make room: request")
        page.get_by_label("tokens in a block").press("End")
        expect(row.locator("th")).to_have_text("16")


def see_batching(page: Page) -> None:
    """Compare two settings of the scheduler."""
    go_to_lesson(page, "Batching")
    page.locator(".guess button").first.click()
    panels = page.locator(".beside section")
    expect(panels).to_have_count(2)
    steps = [panel.locator("td").first.inner_text() for panel in panels.all()]
    assert int(steps[0]) < int(steps[1])  # continuous, and batch by batch
    assert f"{steps[0]} steps instead of {steps[1]}" in page.locator(".verdict").inner_text()
    expect(panels.first.locator(".gantt-track")).to_have_count(8)
    page.get_by_label("a batch ends before the next one starts").uncheck()
    expect(panels.nth(1).locator("td").first).to_have_text(steps[0])
    page.get_by_label("target for a step").press("End")
    expect(panels.nth(1)).to_contain_text("target for a step, ms: 30")
    pauses = [panel.locator("td").last.inner_text() for panel in panels.all()]
    assert int(pauses[1].split()[0]) < int(pauses[0].split()[0])
    page.get_by_role("button", name="Keep this on the left").click()
    expect(panels.first.locator("td").last).to_have_text(pauses[1])


def see_slow_requests(page: Page) -> None:
    """Ask where the time of three requests goes."""
    go_to_lesson(page, "Why was it slow?")
    sections = page.locator(".lesson > section")
    expect(sections).to_have_count(3)
    for section in sections.all():
        section.locator(".guess button").first.click()
        expect(section.locator(".verdict")).to_have_text(re.compile(r"^(Yes|No): .*took \d+ % of"))
        expect(section.locator(".phases span")).to_have_count(3)
    hashes = [section.locator(".hash code").inner_text() for section in sections.all()]
    assert hashes[0] == hashes[2]
    assert hashes[0] != hashes[1]
    expect(sections.last.locator(".hash")).to_contain_text("equal to that alone.")
    batches = [section.locator(".verdict").inner_text().split("with ")[1].split()[0] for section in sections.all()]
    assert float(batches[0]) == float(batches[1]) == 1
    assert float(batches[2]) > 1


def see_the_same_seed(page: Page) -> None:
    """Compare an answer alone with the one beside others."""
    page.locator(".guess button").last.click()
    page.get_by_role("button", name="twice").click()
    expect(page.locator(".lesson section .verdict")).to_have_text("The two hashes are equal.")
    rows = page.locator(".lesson section tbody tr")
    hashes = [row.locator("code").inner_text() for row in rows.all()]
    assert len(hashes) == 2
    assert len(set(hashes)) == 1
    largest = [int(row.locator("td").first.inner_text()) for row in rows.all()]
    assert largest[0] == 1 < largest[1]


def see_code(page: Page) -> None:
    """Read two stops of the sources."""
    go_to_lesson(page, "Read the code")
    page.locator(".guess button").first.click()
    expect(page.locator(".code-part mark").first).to_be_visible()
    page.locator(".stops a").nth(5).click()
    page.get_by_role("button", name="scheduler/engine.py").click()
    expect(page.locator(".verdict")).to_have_text("Yes: scheduler/engine.py.")
    expect(page.locator(".code-part pre")).to_contain_text("def step")


def kill_engine(page: Page, server: RunningServer) -> None:
    """Kill the engine in the middle of a stream, after the page has asked."""
    go_to_lesson(page, "Kill the engine")
    pid = server.engine_pid()
    page.locator(".guess button").last.click()
    page.get_by_role("button", name="Kill the engine of this server").click()
    page.get_by_role("button", name="No", exact=True).click()
    assert server.engine_pid() == pid
    page.get_by_role("button", name="Kill the engine of this server").click()
    page.get_by_role("button", name="Yes, kill it").click()
    expect(page.locator(".verdict")).to_have_text(
        re.compile(rf"^Yes: process {pid} was killed.*The two hashes are equal\.$")
    )
    rows = page.locator(".lesson tbody tr")
    assert rows.nth(0).locator("code").inner_text() == rows.nth(1).locator("code").inner_text()
    assert [row.locator("td").first.inner_text() for row in rows.all()] == ["96", "96"]
    assert server.engine_pid() != pid


def test_each_lesson_asks_first_and_then_shows_what_the_server_computes(
    browser: Browser, server: RunningServer
) -> None:
    with lessons(browser, f"{server.url}/#learn") as page:
        expect(page.get_by_role("button", name="Run")).to_have_count(1)
        see_paging(page, is_small=True)
        see_batching(page)
        page.get_by_role("button", name="Measure them on this server").click()
        expect(page.get_by_label("ms of a step")).not_to_have_value("10")
        result: Any = Axe().run(page)
        assert [one["id"] for one in result.response["violations"] if one["impact"] in ("serious", "critical")] == []
        see_slow_requests(page)
        see_code(page)
        page.set_viewport_size({"width": 320, "height": 700})
        for lesson in ("Paging", "Batching", "Why was it slow?", "Read the code"):
            go_to_lesson(page, lesson)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), lesson
        kill_engine(page, server)


def test_the_copy_without_a_server_shows_what_was_recorded(site: Path, browser: Browser) -> None:
    with files_over_http(site) as url, lessons(browser, url) as page:
        expect(page.get_by_text("what a server computed for tiny")).to_be_visible()
        page.get_by_role("button", name="Run").click()
        page.get_by_role("button", name="Show it without a guess").click()
        expect(page.locator(".code-part pre")).to_contain_text("def encode")
        go_to_lesson(page, "Heads")
        page.locator(".guess button").first.click()
        page.locator(".map.heads td button").last.click()
        expect(page.locator(".lesson h3")).to_have_text(re.compile("^Layer 1, head"))
        go_to_lesson(page, "The draw")
        see_the_same_seed(page)
        see_paging(page, is_small=False)
        see_batching(page)
        see_slow_requests(page)
        see_code(page)
        go_to_lesson(page, "Kill the engine")
        expect(page.locator(".lesson")).to_contain_text("caravan serve")


@contextmanager
def files_over_http(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/"
        finally:
            http.shutdown()
            thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""
