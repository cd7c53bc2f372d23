"""The lessons with a model: what the reader guesses, and the numbers that the page then shows."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.web.open_page import FAILED_LOADS, complaints_of, go_to_lesson
from tests.support.browser_page import IN_BROWSER
from tests.support.running_server import RunningServer, is_alive, running_server
from tests.support.waiting import eventually

pytestmark = [*IN_BROWSER, pytest.mark.slow]
TEXT = "One two three one two three one two"


@pytest.fixture(scope="module")
def server(real_model_path: Path) -> Iterator[RunningServer]:
    options = ["--served-model-name", "smollm2", "--kv-cache-memory", "64MiB", "--max-model-len", "512"]
    with running_server(real_model_path, *options) as running:
        yield running


@pytest.fixture(scope="module")
def trace(server: RunningServer) -> dict[str, Any]:
    """The trace of the text, asked for without the page."""
    body = {"text": TEXT, "is_chat": False}
    response = server.http.post("/v1/learn/trace", json=body, timeout=120)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.fixture
def page(browser: Browser, server: RunningServer) -> Iterator[Page]:
    """The lessons, with the text traced."""
    page = browser.new_page()
    complaints = complaints_of(page)
    page.goto(f"{server.url}/#learn")
    page.fill("#learn-text", TEXT)
    page.locator(".learn-form button").click()
    expect(page.locator(".stops")).to_be_visible(timeout=120_000)
    yield page
    page.close()
    assert [text for text in complaints if not text.startswith(FAILED_LOADS)] == []


def test_every_stop_asks_first_and_then_shows_the_numbers_of_the_trace_and_the_code(
    page: Page, trace: dict[str, Any]
) -> None:
    stops = {stop["name"]: stop["tensors"] for stop in trace["stops"]}
    names = ["embedding", "norm", "qkv", "rope", "scores", "softmax", "values", "residual", "swiglu", "logits"]
    for number in range(1, 15):
        expect(page.locator(".lesson h2")).to_have_text(re.compile(rf"^{number}\. "))
        expect(page.locator(".verdict")).to_have_count(0)
        page.locator(".guess button").first.click()
        expect(page.locator(".verdict")).to_have_text(re.compile(r"^(Yes|No)"))
        expect(page.locator(".code-part pre")).to_contain_text("def ")
        expect(page.locator(".code-part mark").first).to_be_visible()
        if 4 <= number <= 13:
            tensors = stops[names[number - 4]]
            cells = page.locator(".tensors tbody td.number").all_inner_texts()
            numbers = [one for tensor in tensors for one in tensor["numbers"]]
            for cell, one in zip(cells, numbers, strict=True):
                assert cell == "−∞" if one is None else float(cell.replace("−", "-")) == pytest.approx(one, abs=6e-5)
        if number < 14:
            page.locator(".arrows a").last.click()
    page.go_back()
    expect(page.locator(".lesson h2")).to_have_text(re.compile(r"^13\. "))


def test_the_map_of_a_head_has_its_weights(page: Page, trace: dict[str, Any]) -> None:
    go_to_lesson(page, "Heads")
    page.locator(".guess button").first.click()
    expect(page.locator(".verdict")).to_contain_text(f"of {trace['num_layers'] * trace['num_heads']}")
    count = len(trace["tokens"])
    weights = np.frombuffer(base64.b64decode(trace["attention"]), np.uint8).reshape(-1, count, count)
    shown = page.locator(".lesson .map").last.locator("tbody td.heat").all_inner_texts()
    expected = [f"{weights[0, row, key] / 255 * 100:.0f} %" for row in range(count) for key in range(row + 1)]
    assert shown == expected
    expect(page.locator(".map.heads td button")).to_have_count(trace["num_layers"] * trace["num_heads"])
    page.locator(".map.heads td button").nth(trace["num_heads"] + 1).click()
    expect(page.locator(".lesson h3")).to_have_text("Layer 1, head 1")


def test_the_last_of_two_heads_is_shown_with_the_focus_and_a_trace_leaves_other_lessons_alone(page: Page) -> None:
    go_to_lesson(page, "Heads")
    page.locator(".guess button").first.click()
    heads = page.locator(".map.heads td button")
    heads.nth(1).click()
    heads.nth(2).focus()
    page.keyboard.press("Enter")
    expect(page.locator(".lesson h3")).to_have_text("Layer 0, head 2")
    expect(heads.nth(2)).to_be_focused()
    page.locator(".learn-form button").click()
    page.locator(".learn nav a", has_text="Paging").click()
    page.fill("#learn-lines", "My own words")
    page.wait_for_function("() => document.querySelector('.learn-status').textContent.startsWith('It took')")
    assert page.locator("#learn-lines").input_value() == "My own words"


def test_the_same_seed_has_the_same_hash_in_company(page: Page) -> None:
    go_to_lesson(page, "The draw")
    page.locator(".guess button").last.click()
    page.locator("input[type=number][aria-label='top_k, 0 for all, as a number']").fill("3")
    page.keyboard.press("Enter")
    expect(page.locator(".lesson p", has_text="can be drawn")).to_have_text("3 tokens can be drawn.")
    expect(page.locator(".bars li.left-out")).to_have_count(17)
    page.locator("button", has_text="twice").click()
    rows = page.locator(".lesson section tbody tr")
    expect(rows).to_have_count(2)
    hashes = {row.locator("code").inner_text() for row in rows.all()}
    assert len(hashes) == 1
    assert int(rows.nth(1).locator("td").first.inner_text()) > int(rows.nth(0).locator("td").first.inner_text()) == 1


def test_the_words_after_each_layer_are_those_of_the_trace(page: Page, trace: dict[str, Any]) -> None:
    go_to_lesson(page, "Layer by layer")
    page.locator(".guess button").first.click()
    rows = page.locator(".map.lens tbody tr")
    expect(rows).to_have_count(trace["num_layers"])
    best = trace["lens"][-1][0]
    expect(rows.last.locator("td").first).to_contain_text(f"{best['probability'] * 100:.1f} %")


def test_a_text_that_is_too_long_is_refused_with_the_limit(page: Page) -> None:
    page.fill("#learn-text", "word " * 70)
    page.locator(".learn-form button").click()
    expect(page.locator(".learn-status.failure")).to_contain_text("The limit is 64 tokens.")


def test_the_process_of_traces_ends_with_the_server(real_model_path: Path) -> None:
    with running_server(real_model_path, "--kv-cache-memory", "16MiB", "--max-model-len", "512") as running:
        before = set(running.children())
        response = running.http.post("/v1/learn/trace", json={"text": "hi", "is_chat": False}, timeout=120)
        assert response.status_code == 200, response.text
        (pid,) = set(running.children()) - before
        running.process.kill()
        eventually(lambda: not is_alive(pid))
