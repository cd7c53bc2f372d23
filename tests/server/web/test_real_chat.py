"""The chat with a model: streamed answers, their tokens and timing, and what stopping ends in the engine."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.web.open_page import complaints_of, give_key, reload_when_saved
from tests.support.browser_page import IN_BROWSER
from tests.support.running_server import RunningServer, running_server
from tests.support.waiting import eventually

pytestmark = IN_BROWSER
KEY = "the-key-of-the-page"


@pytest.fixture(scope="module")
def server(real_model_path: Path) -> Iterator[RunningServer]:
    options = ["--served-model-name", "smollm2", "--kv-cache-memory", "16MiB", "--max-model-len", "512"]
    with running_server(real_model_path, *options, "--api-key", KEY) as running:
        running.http.headers["authorization"] = f"Bearer {KEY}"
        yield running


@pytest.fixture
def page(browser: Browser, server: RunningServer) -> Iterator[Page]:
    page = browser.new_page()
    complaints = complaints_of(page)
    page.goto(server.url)
    give_key(page, KEY)
    expect(page.locator("#model-chip")).to_contain_text("smollm2")
    page.evaluate("localStorage.setItem('settings', JSON.stringify({temperature: 0}))")
    yield page
    page.close()
    assert [text for text in complaints if "401" not in text] == []


def aborted(server: RunningServer) -> int:
    """Return how many requests were given up by their clients."""
    pattern = r'request_incomplete_total\{[^}]*finished_reason="abort"[^}]*\} (\d+)'
    found = re.search(pattern, server.http.get("/metrics").text)
    return int(found[1]) if found else 0


def test_an_answer_streams_and_its_tokens_and_timing_are_shown(page: Page) -> None:
    expect(page.locator("#model-chip")).to_have_text(re.compile(r"^smollm2 · \S.* · 512 tokens$"))
    page.fill("#message", "What is the capital of France?")
    page.keyboard.press("Enter")
    answer = page.locator(".message.assistant")
    expect(answer.locator(".text")).to_contain_text("The capital of France is Paris.")
    facts = re.compile(r"\d+ tokens, [\d.]+ tokens/s; first token after \d+ ms")
    expect(answer.locator(".facts")).to_have_text(facts)
    answer.locator("button", has_text="Tokens").click()
    page.locator(".token", has_text="Paris").hover()
    expect(page.locator("#token-details")).to_contain_text(re.compile(r'" Paris", probability [\d.]+ %'))
    page.locator("[role=tab]", has_text="Timing").click()
    expect(page.locator("#inspector")).to_contain_text(re.compile(r"Answer\d+ ms"))
    expect(page.locator("#meter")).to_have_text(re.compile(r"^\d+ of 512 tokens$"))
    reload_when_saved(page)
    expect(answer).to_contain_text("Paris")


def test_a_stopped_answer_ends_in_the_engine_and_can_be_continued(page: Page, server: RunningServer) -> None:
    page.fill("#message", "Tell me a very long story about a caravan.")
    page.keyboard.press("Enter")
    answer = page.locator(".message.assistant .text")
    expect(answer).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    assert server.metric("num_requests_running") == 1
    num_aborted = aborted(server)
    page.keyboard.press("Escape")
    eventually(lambda: server.metric("num_requests_running") == 0)
    assert aborted(server) == num_aborted + 1
    before = answer.inner_text()
    page.locator(".notice button", has_text="Continue").click()
    eventually(lambda: len(answer.inner_text()) > len(before) + 20)
    assert answer.inner_text().startswith(before.rstrip())
    page.keyboard.press("Escape")


def test_an_answer_as_long_as_the_context_says_that_it_is_cut(page: Page) -> None:
    page.fill("#message", "Count from one to one thousand in words, with every number.")
    page.keyboard.press("Enter")
    expect(page.locator(".notice")).to_contain_text("context of 512 tokens is full", timeout=120_000)


def test_the_request_that_is_shown_has_the_same_answer(page: Page, server: RunningServer) -> None:
    page.fill("#message", "Name three colours.")
    page.keyboard.press("Enter")
    expect(page.locator(".message.assistant .facts")).to_be_visible(timeout=30_000)
    page.locator(".message.assistant button", has_text="Timing").click()
    page.locator("[role=tab]", has_text="Request").click()
    text = page.locator("#inspector pre").first.inner_text()
    body = page.evaluate("text => JSON.parse(text)", text) | {"stream": False, "stream_options": None}
    content = server.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    page.locator("[role=tab]", has_text="Tokens").click()
    assert page.locator(".tokens").evaluate("node => node.textContent").startswith(content)  # an end token may follow
