"""The API reference in a browser: all routes, the request form, and no other origins."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.server.web.open_page import complaints_of
from tests.support.browser_page import BROWSER
from tests.support.running_server import RunningServer, running_server

pytestmark = BROWSER
KEY = "the-key-of-the-page"


@pytest.fixture(scope="module")
def server(tiny_model_path: Path) -> Iterator[RunningServer]:
    with running_server(tiny_model_path, "--kv-cache-memory", "4MiB", "--api-key", KEY) as running:
        running.http.headers["authorization"] = f"Bearer {KEY}"
        yield running


@pytest.fixture
def page(browser: Browser, server: RunningServer) -> Iterator[Page]:
    page = browser.new_page()
    complaints = complaints_of(page)
    elsewhere: list[str] = []
    page.on("request", lambda request: None if request.url.startswith(server.url) else elsewhere.append(request.url))
    page.goto(f"{server.url}/docs")
    expect(page.locator("#trouble")).to_have_text("The server requires an API key. Enter it in the field above.")
    assert complaints == ["Failed to load resource: the server responded with a status of 401 (Unauthorized)"]
    complaints.clear()
    page.fill("#key", KEY)
    page.dispatch_event("#key", "change")
    expect(page.locator(".route").first).to_be_visible()
    yield page
    page.close()
    assert complaints == []
    assert [url for url in elsewhere if not url.startswith("data:")] == []


def test_every_route_is_shown_with_its_fields(page: Page, server: RunningServer) -> None:
    document = server.http.get("/openapi.json").json()
    routes = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert {*page.locator(".route > summary > code").all_inner_texts()} == routes
    page.locator("#post-v1-chat-completions > summary").click()
    chat = page.locator("#post-v1-chat-completions")
    expect(chat.locator("> .scrolling").first).to_be_visible()
    fields = chat.locator("> .scrolling").first.locator("> table > tbody > tr > th").all_inner_texts()
    assert {*fields} == {*document["components"]["schemas"]["ChatRequest"]["properties"]}
    row = chat.locator("tr", has=page.locator("th", has_text=re.compile("^temperature$")))
    expect(row).to_contain_text("number")
    expect(row).to_contain_text("0 selects the most probable token. At least 0, at most 2.")
    messages = chat.locator("tr", has=page.locator("th", has_text=re.compile("^messages$"))).first
    messages.locator("summary", has_text="Message").click()
    expect(messages.locator("th", has_text="tool_call_id")).to_be_visible()
    assert page.url.endswith("#post-v1-chat-completions")


def test_a_route_can_be_tried(page: Page) -> None:
    page.locator("#post-v1-completions > summary").click()
    form = page.locator("#post-v1-completions form")
    form.locator("textarea").fill('{"model": "tiny", "prompt": "hi", "max_tokens": 4, "stream": true}')
    form.locator("button", has_text="Send").click()
    expect(form.locator("pre")).to_contain_text("data: [DONE]")
    expect(form.locator("pre")).to_contain_text("200")
    expect(form.locator("button", has_text="Send")).to_be_enabled()
    page.locator("#get-v1-models-name- > summary").click()
    form = page.locator("#get-v1-models-name- form")
    form.locator("input").fill("tiny")
    form.locator("button", has_text="Send").click()
    expect(form.locator("pre")).to_contain_text('"max_model_len"')


def test_a_stream_without_an_end_can_be_stopped(page: Page) -> None:
    page.locator("#get-v1-engine-events > summary").click()
    form = page.locator("#get-v1-engine-events form")
    form.locator("button", has_text="Send").click()
    expect(form.locator("pre")).to_contain_text("num_blocks")
    form.locator("button", has_text="Stop").click()
    expect(form.locator("pre")).to_contain_text("Stopped.")


def test_the_page_is_accessible(page: Page) -> None:
    page.locator("#post-v1-chat-completions > summary").click()
    for _ in range(2):
        found = Axe().run(page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert serious == [], [(one["id"], one["nodes"][0]["html"]) for one in serious]
        page.click("#theme")
