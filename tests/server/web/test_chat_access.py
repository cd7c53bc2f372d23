"""The chat by keyboard, with assistive technology, and on small screens."""

from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.server.web.fake_server import Answer, FakeServer, says
from tests.server.web.markdown_example import MARKDOWN
from tests.server.web.open_page import answer_of, ask, open_page
from tests.support.browser_page import SLOW_BROWSER
from tests.support.extent import only_in_full

pytestmark = SLOW_BROWSER


def focused(page: Page) -> str:
    """Return what has the focus: its ID, or its text."""
    text: str = page.evaluate("document.activeElement.id || document.activeElement.innerText.trim().slice(0, 40)")
    return text


def test_a_conversation_by_keyboard_alone(browser: Browser, fake: FakeServer) -> None:
    with open_page(browser, fake) as page:
        expect(page.locator("#model-chip")).to_contain_text("tiny")
        press = page.keyboard.press
        assert focused(page) == "message"
        page.keyboard.type("Hello")
        press("Enter")
        expect(page.locator(".message.assistant .text")).to_have_text("Hello there.")
        expect(page.locator("#announcement")).to_have_text("The answer is complete.")
        assert focused(page) == "message"
        fake.answers = [Answer(["word "] * 3_000, seconds=0.02)]
        page.keyboard.type("Go on")
        press("Enter")
        expect(page.locator(".message.assistant .text").last).to_contain_text("word")
        press("Escape")
        expect(page.locator("#announcement")).to_have_text("Stopped.")
        press("Shift+Tab")  # out of the field: J and K would be typed
        positions = []
        for key in ("k", "k", "j", "k"):
            press(key)
            positions.append(
                page.evaluate("[...document.querySelectorAll('.message')].indexOf(document.activeElement)")
            )
        assert positions[0] - positions[1] == 1
        assert positions[2] == positions[0]
        press("Shift+?")
        expect(page.locator("dialog")).to_contain_text("Stop the answer")
        press("Escape")
        expect(page.locator("dialog")).to_have_count(0)
        press("Control+k")
        assert focused(page) == "search"
        page.keyboard.type("nothing like it")
        expect(page.locator("#conversations")).to_have_text("Nothing found.")
        press("Control+Shift+O")
        expect(page.locator(".welcome")).to_be_visible()
        assert focused(page) == "message"


def test_the_focus_stays_with_the_message_whose_button_was_pressed(browser: Browser, fake: FakeServer) -> None:
    broken = {"message": "The engine broke."}
    fake.answers = [says("First."), says("Second."), Answer(["Third."], error=broken), says(" More.")]
    with open_page(browser, fake) as page:
        answer_of(page, "A question")
        answer = page.locator(".message.assistant")
        for text in ("Second.", "Third."):
            answer.get_by_role("button", name="Regenerate").press("Enter")
            expect(answer.locator(".text")).to_have_text(text)
            expect(answer).to_have_attribute("aria-busy", "false")
            expect(answer).to_be_focused()
        answer.locator(".notice button").press("Enter")
        expect(answer.locator(".text")).to_have_text("Third. More.")
        expect(answer).to_be_focused()
        previous, following = (answer.get_by_label(f"{way} version") for way in ("Previous", "Next"))
        for button, text, focused in (
            (previous, "Second.", previous),
            (previous, "First.", following),  # there is none before
            (following, "Second.", following),
            (following, "Third. More.", previous),
        ):
            button.press("Enter")
            expect(answer.locator(".text")).to_have_text(text)
            expect(focused).to_be_focused()
        question = page.locator(".message.user")
        question.get_by_role("button", name="Edit").press("Enter")
        page.keyboard.press("Escape")
        expect(question.get_by_role("button", name="Edit")).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.type("Another")
        page.keyboard.press("Enter")
        expect(page.locator("#message")).to_be_focused()


def test_the_skip_link_leads_to_the_message_field(browser: Browser, fake: FakeServer) -> None:
    with open_page(browser, fake) as page:
        first = page.evaluate("document.querySelector('a, button, input, textarea, select, [tabindex]').id")
        assert first == "skip"
        page.locator("#skip").focus()
        expect(page.locator("#skip")).to_be_in_viewport()
        page.keyboard.press("Enter")
        assert focused(page) == "message"


def test_tokens_are_one_stop_of_the_tab_key(browser: Browser, fake: FakeServer) -> None:
    with open_page(browser, fake) as page:
        fake.answers = [says("one two three four")]
        answer_of(page, "Count")
        page.locator(".message.assistant button", has_text="Tokens").press("Enter")
        expect(page.locator("#tab-tokens")).to_be_focused()
        for _ in range(3):
            page.keyboard.press("Tab")
        assert focused(page) == "one"
        for key, token in (("ArrowRight", "two"), ("End", "four"), ("ArrowLeft", "three"), ("Home", "one")):
            page.keyboard.press(key)
            assert focused(page) == token
        page.keyboard.press("Escape")
        expect(page.locator("#inspector")).to_be_hidden()
        assert focused(page) == "open-inspector"


def rich(page: Page, fake: FakeServer) -> None:
    fake.answers = [says(MARKDOWN)]
    answer_of(page, "Show me")
    expect(page.locator("math")).to_be_visible()


def failed(page: Page, fake: FakeServer) -> None:
    fake.answers = [Answer(status=400, error={"message": "Something is wrong."})]
    answer_of(page, "Hi")


def cut(page: Page, fake: FakeServer) -> None:
    fake.answers = [says("one two", finish_reason="length")]
    answer_of(page, "Hi")


def waiting(page: Page, fake: FakeServer) -> None:
    fake.answers = [Answer(status=429, error={"message": "Busy."}, headers={"retry-after": "60"})]
    ask(page, "Hi")
    expect(page.locator(".notice")).to_contain_text("Trying again in")


def tokens(page: Page, fake: FakeServer) -> None:
    fake.answers = [says("one two three")]
    answer_of(page, "Hi")
    page.locator(".message.assistant button", has_text="Tokens").click()


def request(page: Page, fake: FakeServer) -> None:
    tokens(page, fake)
    page.locator("[role=tab]", has_text="Request").click()


def editing(page: Page, fake: FakeServer) -> None:
    answer_of(page, "Hi")
    page.locator(".message.user button", has_text="Edit").click()


def settings(page: Page, fake: FakeServer) -> None:
    if page.locator("#open-rail").is_visible():
        page.click("#open-rail")
    page.click("#open-settings")
    expect(page.locator("#settings")).to_be_visible()


def deleted(page: Page, fake: FakeServer) -> None:
    answer_of(page, "Hi")
    page.locator("[aria-label='Delete: Hi']").click()
    expect(page.locator(".toast")).to_be_visible()


def shortcuts(page: Page, fake: FakeServer) -> None:
    page.click("#open-shortcuts")


def nothing(page: Page, fake: FakeServer) -> None:
    pass


STATES: list[Callable[[Page, FakeServer], None]] = [
    nothing,
    rich,
    failed,
    cut,
    waiting,
    tokens,
    request,
    editing,
    settings,
    deleted,
    shortcuts,
]


def in_themes(states: list[Callable[[Page, FakeServer], None]]) -> list[Any]:
    """Return each state with both themes; by default one of the two, in turn."""
    themes = ("light", "dark")
    return [
        pytest.param(state, theme, marks=[only_in_full()] * ((number + shift) % 2))
        for number, state in enumerate(states)
        for shift, theme in enumerate(themes)
    ]


@pytest.mark.parametrize(("state", "theme"), in_themes(STATES), ids=lambda value: getattr(value, "__name__", value))
def test_every_state_is_accessible(
    browser: Browser, fake: FakeServer, state: Callable[[Page, FakeServer], None], theme: str
) -> None:
    with open_page(browser, fake, color_scheme=theme) as page:
        expect(page.locator("#model-chip")).to_contain_text("tiny")
        state(page, fake)
        page.wait_for_timeout(200)
        found = Axe().run(page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert serious == [], [(one["id"], [node["html"] for node in one["nodes"]]) for one in serious]


@pytest.mark.parametrize("state", [failed, settings], ids=lambda state: state.__name__)  # more: test_reference_states
def test_320_pixels_lose_nothing(browser: Browser, fake: FakeServer, state: Callable[[Page, FakeServer], None]) -> None:
    with open_page(browser, fake, viewport={"width": 320, "height": 640}) as page:
        state(page, fake)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 320
        outside = page.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea, a, p, article")].filter((node) => {
                if (!node.checkVisibility({ visibilityProperty: true })) return false;
                if (node.closest(".skip, .for-readers")) return false;
                const { left, right } = node.getBoundingClientRect();
                return left < -1 || right > 321;
            }).map((node) => node.outerHTML.slice(0, 120))"""
        )
        assert outside == []


def test_the_list_is_a_sheet_on_a_phone(browser: Browser, fake: FakeServer) -> None:
    with open_page(browser, fake, viewport={"width": 390, "height": 844}, has_touch=True) as page:
        answer_of(page, "First")
        expect(page.locator("#new-chat")).not_to_be_visible()
        page.click("#open-rail")
        expect(page.locator("#new-chat")).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.locator("#new-chat")).not_to_be_visible()
        expect(page.locator("#open-rail")).to_be_focused()
        page.click("#open-rail")
        page.click("#new-chat")
        expect(page.locator(".welcome")).to_be_visible()
        expect(page.locator("#new-chat")).not_to_be_visible()


def test_the_chosen_theme_is_kept(browser: Browser, fake: FakeServer) -> None:
    with open_page(browser, fake, color_scheme="light") as page:
        dark = "getComputedStyle(document.body).colorScheme"
        page.click("#open-settings")
        page.select_option("#theme", "dark")
        page.locator("#settings button", has_text="Cancel").click()
        page.reload()
        assert page.evaluate(dark) == "dark"
        page.click("#open-settings")
        page.select_option("#theme", "auto")
        page.reload()
        assert page.evaluate(dark) == "light dark"
