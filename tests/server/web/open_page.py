"""Pages of the fake server, which end with an error if the page complained."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Dialog, Page, expect

from tests.server.web.fake_server import FakeServer

FAILED_LOADS = "Failed to load resource"  # chromium logs every status from 400 on


def complaints_of(page: Page) -> list[str]:
    """Return a list to which errors of the console and of the page's scripts are added."""
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return complaints


@contextmanager
def open_page(browser: Browser, fake: FakeServer, path: str = "/", **options: Any) -> Iterator[Page]:
    """Open the page with nothing stored."""
    context = browser.new_context(**options)
    page = context.new_page()
    complaints = complaints_of(page)

    def refuse(dialog: Dialog) -> None:
        complaints.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", refuse)
    page.goto(fake.url + path)
    yield page
    context.close()
    assert [text for text in complaints if not text.startswith(FAILED_LOADS)] == []


def give_key(page: Page, key: str) -> None:
    """Give the API key that the page asks for, and wait until it is accepted: until then nothing else can be used."""
    page.fill("#key", key)
    page.keyboard.press("Enter")
    expect(page.locator("dialog:modal")).to_have_count(0)


def ask(page: Page, question: str) -> None:
    """Send a question."""
    page.fill("#message", question)
    page.keyboard.press("Enter")


def answer_of(page: Page, question: str) -> str:
    """Send a question and return the text of its answer when it is complete."""
    num_before = page.locator(".message.assistant").count()
    ask(page, question)
    answer = page.locator(".message.assistant").nth(num_before)
    expect(answer).to_have_attribute("aria-busy", "false")
    return answer.locator(".text").inner_text()


def reload_when_saved(page: Page) -> None:
    """Load the page again after all that it has begun to store is written: a transaction waits for those before it."""
    page.evaluate(
        """() => new Promise((done, fail) => {
            const opening = indexedDB.open("caravan");
            opening.onerror = fail;
            opening.onsuccess = () => {
                const reading = opening.result.transaction(["conversations", "messages"]);
                reading.objectStore("messages").count();
                reading.oncomplete = () => {
                    opening.result.close();
                    done();
                };
                reading.onabort = fail;
            };
        })"""
    )
    page.reload()


def go_to_lesson(page: Page, name: str) -> None:
    """Open a lesson with the link of that name, and wait until what the page showed before it is gone."""
    page.evaluate("() => document.querySelector('.lesson').firstElementChild?.setAttribute('data-before', '')")
    page.locator(".learn nav a", has_text=name).click()
    expect(page.locator(".lesson [data-before]")).to_have_count(0)
    expect(page.locator(".lesson h2")).to_be_visible()
