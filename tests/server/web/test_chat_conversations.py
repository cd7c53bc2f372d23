"""Conversations in the browser: the list, search, rename, delete and undo, export and import."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.web.fake_server import Answer, FakeServer, says
from tests.server.web.open_page import answer_of, ask, open_page, reload_when_saved
from tests.support.browser_page import SLOW_BROWSER

pytestmark = SLOW_BROWSER


@pytest.fixture
def page(browser: Browser, fake: FakeServer) -> Iterator[Page]:
    with open_page(browser, fake) as page:
        yield page


def titles(page: Page) -> list[str]:
    return page.locator("#conversations a").all_inner_texts()


def two_conversations(page: Page) -> None:
    answer_of(page, "Where do camels live?")
    page.click("#new-chat")
    expect(page.locator(".welcome")).to_be_visible()
    answer_of(page, "What is tea?")
    expect(page.locator("#conversations a")).to_have_count(2)


def test_conversations_are_listed_by_day_and_have_addresses(page: Page) -> None:
    two_conversations(page)
    expect(page.locator("#conversations h2")).to_have_text("Today")
    assert titles(page) == ["What is tea?", "Where do camels live?"]
    expect(page.locator("#conversations [aria-current]")).to_have_text("What is tea?")
    expect(page).to_have_title("What is tea? · Caravan")
    page.locator("#conversations a").last.click()
    expect(page.locator(".message.user .text")).to_have_text("Where do camels live?")
    page.go_back()
    expect(page.locator(".message.user .text")).to_have_text("What is tea?")
    reload_when_saved(page)
    expect(page.locator(".message.user .text")).to_have_text("What is tea?")
    page.evaluate("location.hash = '#chat/none'")
    expect(page.locator("#toasts")).to_contain_text("This conversation is not in this browser.")
    expect(page.locator(".welcome")).to_be_visible()


def test_an_address_is_followed_although_the_conversation_changes_at_that_moment(page: Page) -> None:
    two_conversations(page)
    address = page.locator("#conversations a").last.get_attribute("href")
    page.evaluate(
        """(address) => {
            location.hash = address; // it is followed when this script has ended
            document.querySelector('[data-tool="regenerate"]').click();
        }""",
        address,
    )
    expect(page.locator(".message.user .text")).to_have_text("Where do camels live?")


def test_days_have_names(page: Page) -> None:
    names = page.evaluate(
        """async () => {
            const { dayOf } = await import("/web/chat/conversation.js");
            const now = new Date(2026, 11, 2, 0, 30).getTime();
            const ago = (hours) => dayOf(now - 3_600_000 * hours, now);
            return [ago(0), ago(1), ago(25), ago(72), ago(24 * 40)];
        }"""
    )
    assert names == ["Today", "Yesterday", "Monday", "Sunday", "October 2026"]


def test_search_finds_titles_and_texts(page: Page, fake: FakeServer) -> None:
    fake.answers = [says("In dry places."), says("A drink.")]
    two_conversations(page)
    for text, found in (("DRINK", ["What is tea?"]), ("camels", ["Where do camels live?"]), ("nothing", [])):
        page.fill("#search", text)
        expect(page.locator("#conversations a")).to_have_text(found)
    expect(page.locator("#conversations")).to_have_text("Nothing found.")
    page.fill("#search", "")
    expect(page.locator("#conversations a")).to_have_count(2)


def test_a_conversation_is_renamed(page: Page) -> None:
    two_conversations(page)
    for key, shown in (("Escape", "What is tea?"), ("Enter", "Tea")):
        page.locator("[aria-label='Rename: What is tea?']").click()
        page.locator(".rename").fill("Tea")
        page.locator(".rename").press(key)
        expect(page.locator("#conversations a").first).to_have_text(shown)
    expect(page.locator("#title")).to_have_text("Tea")
    reload_when_saved(page)
    expect(page.locator("#title")).to_have_text("Tea")


def test_a_title_from_another_tab_is_kept(page: Page) -> None:
    answer_of(page, "What is tea?")
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator(".message.user .text")).to_have_text("What is tea?")
    other.locator("[aria-label='Rename: What is tea?']").click()
    other.locator(".rename").fill("Tea")
    other.locator(".rename").press("Enter")
    expect(other.locator("#conversations a")).to_have_text("Tea")
    answer_of(page, "And coffee?")
    expect(page.locator("#title")).to_have_text("Tea")
    expect(page.locator("#conversations a")).to_have_text("Tea")
    other.reload()
    expect(other.locator(".message.user .text")).to_have_text(["What is tea?", "And coffee?"])
    expect(other.locator("#title")).to_have_text("Tea")


def test_a_list_that_another_tab_changed_is_read_again_when_the_page_is_shown(page: Page) -> None:
    answer_of(page, "What is tea?")
    other = page.context.new_page()
    other.goto(page.url)
    other.locator("[aria-label='Delete: What is tea?']").click()
    expect(other.locator("#conversations a")).to_have_count(0)
    expect(page.locator("#conversations a")).to_have_count(1)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#conversations a")).to_have_count(0)


def test_a_conversation_that_another_tab_deleted_is_stored_whole_when_it_goes_on(page: Page) -> None:
    answer_of(page, "What is tea?")
    other = page.context.new_page()
    other.goto(page.url)
    other.locator("[aria-label='Delete: What is tea?']").click()
    expect(other.locator("#conversations a")).to_have_count(0)
    answer_of(page, "And coffee?")
    reload_when_saved(page)
    expect(page.locator(".message.user .text")).to_have_text(["What is tea?", "And coffee?"])
    expect(page.locator(".message.assistant .text")).to_have_text(["Hello there.", "Hello there."])
    expect(page.locator("#conversations a")).to_have_text("What is tea?")


def test_answers_keep_their_order_when_the_clock_is_set_back(page: Page, fake: FakeServer) -> None:
    fake.answers = [says("First."), says("Second."), says("Third.")]
    answer_of(page, "A question")
    for text in ("Second.", "Third."):
        page.evaluate("{ const now = Date.now; Date.now = () => now() - 3_600_000; }")
        page.locator(".message.assistant button", has_text="Regenerate").click()
        expect(page.locator(".message.assistant .text")).to_have_text(text)
    expect(page.locator(".message.assistant .branch")).to_contain_text("3 of 3")
    reload_when_saved(page)
    expect(page.locator(".message.assistant .text")).to_have_text("Third.")
    page.get_by_label("Previous version").click()
    expect(page.locator(".message.assistant .text")).to_have_text("Second.")


def test_messages_of_earlier_versions_of_the_page_are_the_oldest(page: Page) -> None:
    order = page.evaluate(
        """async () => {
            const { siblings } = await import("/web/chat/conversation.js");
            const one = (id, createdAt, more) => ({ id, parent: null, createdAt, ...more });
            const all = [one("d", 1, { number: 3 }), one("b", 9), one("c", 2, { number: 2 }), one("a", 5)];
            return siblings(new Map(all.map((each) => [each.id, each])), all[0]).map(({ id }) => id);
        }"""
    )
    assert order == ["a", "b", "c", "d"]


def test_a_deleted_conversation_can_be_brought_back(page: Page, fake: FakeServer) -> None:
    two_conversations(page)
    page.locator("[aria-label='Delete: What is tea?']").click()
    expect(page.locator(".welcome")).to_be_visible()
    assert titles(page) == ["Where do camels live?"]
    page.locator(".toast button", has_text="Undo").click()
    expect(page.locator("#conversations a")).to_have_count(2)
    page.locator("#conversations a", has_text="tea").click()
    expect(page.locator(".message.assistant .text")).to_have_text("Hello there.")
    fake.answers = [Answer(["word "] * 3_000, seconds=0.02)]
    ask(page, "Long")
    expect(page.locator(".message.assistant .text").last).to_contain_text("word")
    page.locator("[aria-label='Delete: What is tea?']").click()
    expect(page.locator("#conversations a")).to_have_count(1)
    page.wait_for_timeout(300)
    reload_when_saved(page)
    expect(page.locator("#conversations a")).to_have_count(1)  # its answer did not bring it back


def test_an_answer_goes_on_while_another_conversation_is_shown(page: Page, fake: FakeServer) -> None:
    answer_of(page, "First")
    may_end = threading.Event()
    fake.answers = [Answer(["word "] * 60, seconds=0.02, then=may_end)]
    page.click("#new-chat")
    ask(page, "Second")
    expect(page.locator(".message.assistant .text")).to_contain_text("word")
    page.locator("#conversations a", has_text="First").click()
    expect(page.locator("#send")).to_have_text("Send")
    expect(page.locator(".message.assistant .text")).to_have_text("Hello there.")
    page.locator("#conversations a", has_text="Second").click()
    expect(page.locator("#send")).to_have_text("Stop")
    may_end.set()
    expect(page.locator("#send")).to_have_text("Send")
    assert page.locator(".message.assistant .text").inner_text().count("word") == 60


def test_a_partial_answer_survives_a_reload(page: Page, fake: FakeServer) -> None:
    fake.answers = [Answer(["word "] * 3_000, seconds=0.02)]
    ask(page, "Long")
    page.wait_for_timeout(3500)
    page.reload()
    expect(page.locator(".message.assistant .text")).to_contain_text("word word")
    expect(page.locator(".notice")).to_contain_text("This answer was cut when the page was closed.")


def test_conversations_are_exported_and_imported(page: Page, tmp_path: Path) -> None:
    two_conversations(page)
    page.click("#open-settings")
    with page.expect_download() as downloaded:
        page.locator("#settings button", has_text="Export all").click()
    exported = tmp_path / "exported.json"
    downloaded.value.save_as(exported)
    content = json.loads(exported.read_text())
    assert [one["title"] for one in content["conversations"]] == ["What is tea?", "Where do camels live?"]
    with page.expect_file_chooser() as chosen:
        page.locator("#settings button", has_text="Import").click()
    chosen.value.set_files(exported)
    page.locator("#settings button", has_text="Cancel").click()
    expect(page.locator("#toasts")).to_contain_text("2 conversations were imported.")
    expect(page.locator("#conversations a")).to_have_count(4)
    page.locator("#conversations a", has_text="camels").last.click()
    expect(page.locator(".message.assistant .text")).to_have_text("Hello there.")


def test_an_import_that_the_storage_ends_says_how_much_of_it_is_there(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "two.json"
    given = [{"title": "One", "messages": []}, {"title": "Two", "messages": []}]
    file.write_text(json.dumps({"format": "caravan-conversations", "version": 1, "conversations": given}))
    page.evaluate(
        """() => {
            const { put } = IDBObjectStore.prototype;
            IDBObjectStore.prototype.put = function (one) {
                if (one.title === "Two") throw new DOMException("The storage is full.", "QuotaExceededError");
                return put.call(this, one);
            };
        }"""
    )
    page.click("#open-settings")
    with page.expect_file_chooser() as chosen:
        page.locator("#settings button", has_text="Import").click()
    chosen.value.set_files(file)
    expect(page.locator("#toasts")).to_contain_text("1 conversation was imported. The storage is full.")
    expect(page.locator("#conversations a")).to_have_text("One")


NUMBERED = '{"format": "caravan-conversations", "version": 1, "conversations": [{"messages": [], "createdAt": %s}]}'


def answer(**fields: Any) -> dict[str, Any]:
    """Return a conversation of a question and an answer with these fields."""
    question = {"id": "a", "role": "user", "content": "x", "parent": None}
    return {"messages": [question, {"id": "b", "role": "assistant", "content": "y", "parent": "a"} | fields]}


BROKEN = [
    ("{", "The file is not JSON."),
    ("[]", "The file is no export"),
    ({"format": "caravan-conversations", "version": 2, "conversations": []}, "The file is no export"),
    ([{"title": "x"}], "Conversation 1 has no messages."),
    ([{"messages": [{"role": "user", "content": "x", "parent": None}]}], "a message has no ID of its own"),
    ([{"messages": [{"id": "a", "role": "system", "content": "x", "parent": None}]}], "no role or no content"),
    ([{"messages": [{"id": "a", "role": "user", "content": 1, "parent": None}]}], "no role or no content"),
    ([{"messages": [{"id": "a", "role": "user", "content": "x", "parent": "b"}]}], "before another is missing"),
    ([{"messages": [{"id": "a", "role": "user", "content": "x", "parent": "a"}]}], "in a circle"),
    ([{"messages": [], "createdAt": -1}], "Conversation 1: createdAt is -1; it must be from 0 to 8640000000000000."),
    ([{"messages": [], "updatedAt": 1e300}], "Conversation 1: updatedAt is 1e+300; it must be from 0 to"),
    (NUMBERED % "1e999", "Conversation 1: createdAt is Infinity; it must be from 0 to"),
    ([answer(createdAt=8.65e15)], "createdAt is 8650000000000000; it must be from 0 to"),
    ([answer(number=-1)], "number is -1; it must be from 0 to"),
    ([answer(number=0.5)], "number is 0.5; it must be a whole number."),
    ([answer(leftOut=3)], "leftOut is 3; it must be from 0 to 2."),
    ([answer(usage={"total_tokens": 1e17})], "total_tokens is 100000000000000000; it must be from 0 to"),
    ([answer(tokens=[{"token": "x", "logprob": 800, "top": []}])], "logprob is 800; it must be from -1000000000 to"),
    ([answer(tokens=[{"token": "x", "logprob": 0, "top": [{"token": "y", "logprob": 1}]}])], "logprob is 1; it must"),
]


def test_a_broken_import_says_what_is_wrong(page: Page) -> None:
    for given, error in BROKEN:
        text = given if isinstance(given, str) else json.dumps(given)
        if isinstance(given, list) and given:
            text = json.dumps({"format": "caravan-conversations", "version": 1, "conversations": given})
        message = page.evaluate(
            """async (text) => {
                const { imported } = await import("/web/chat/transfer.js");
                try { return JSON.stringify(imported(text)); } catch (error) { return error.message; }
            }""",
            text,
        )
        assert error in message, given


def test_numbers_within_their_bounds_are_imported(page: Page) -> None:
    tokens = [{"token": "y", "logprob": -0.5, "top": [{"token": "y", "logprob": 1e-7}]}]
    fields = {"createdAt": 8.64e15, "number": 1, "leftOut": 2, "usage": {"total_tokens": 12}, "tokens": tokens}
    given = {"format": "caravan-conversations", "version": 1, "conversations": [answer(**fields)]}
    (conversation,) = page.evaluate(
        """async (text) => (await import("/web/chat/transfer.js")).imported(text)""", json.dumps(given)
    )
    assert {name: conversation["messages"][1][name] for name in fields} == fields


def test_the_conversation_of_the_earlier_page_is_taken_over(page: Page) -> None:
    page.evaluate(
        """() => localStorage.setItem("messages", JSON.stringify([
            {role: "user", content: "Old question"}, {role: "assistant", content: "Old answer", facts: "1 token"}]))"""
    )
    for _ in range(2):
        page.reload()
        expect(page.locator("#conversations a")).to_have_text("Old question")
    page.locator("#conversations a").click()
    expect(page.locator(".message.assistant .text")).to_have_text("Old answer")
