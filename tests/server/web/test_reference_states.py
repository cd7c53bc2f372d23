"""The states of the reference screenshots, on a small screen and on one that is zoomed: nothing is lost.

And a walk through the views by keyboard alone.
"""

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.server.web.fake_server import Answer, says
from tests.server.web.reference_states import STATES, TRACED, Servers, servers
from tests.support.browser_page import SLOW_BROWSER

pytestmark = SLOW_BROWSER

# What a reader cannot reach: it is beyond an edge of the window, and nothing around it scrolls sideways.
LOST = """() => [...document.querySelectorAll("button, input, textarea, select, a, p, dd, th, td, canvas, h1, h2")]
    .filter((node) => {
        if (!node.checkVisibility({ visibilityProperty: true, opacityProperty: true })) return false;
        if (node.closest(".skip, .for-readers, thead")) return false;
        for (let up = node.parentElement; up !== document.body; up = up.parentElement)
            if (up.scrollWidth > up.clientWidth && getComputedStyle(up).overflowX !== "visible"
                && getComputedStyle(up).overflowX !== "hidden") return false;
        const { left, right } = node.getBoundingClientRect();
        return left < -1 || right > innerWidth + 1;
    }).map((node) => node.outerHTML.slice(0, 160))"""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with servers(tmp_path_factory.mktemp("states")) as both:
        yield both


def complaints_of(page: Page) -> list[str]:
    """Return a list to which failures of the page's scripts are added."""
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return complaints


def serious_violations(page: Page) -> list[tuple[str, str]]:
    found = Axe().run(page).response["violations"]
    return [
        (one["id"], node["html"]) for one in found if one["impact"] in ("serious", "critical") for node in one["nodes"]
    ]


def test_every_state_fits_a_phone_a_narrow_phone_and_twice_the_zoom(browser: Browser, both: Servers) -> None:
    for state in STATES:
        context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
        page = context.new_page()
        complaints = complaints_of(page)
        state(page, both)
        picture = page.screenshot()
        for width, height in ((390, 844), (320, 640), (640, 450)):  # the last: 1280 by 900 at 200 %
            page.set_viewport_size({"width": width, "height": height})
            size = f"{state.__name__} at {width}"
            assert page.evaluate("document.scrollingElement.scrollWidth") <= width, size
            assert page.evaluate(LOST) == [], size
            if page.evaluate("document.body.dataset.view"):  # the views scroll, never the page around them
                assert page.evaluate("document.scrollingElement.scrollHeight") <= height, size
        assert len(picture) > 8000, f"{state.__name__}: the page is empty"
        assert serious_violations(page) == [], state.__name__
        assert complaints == [], state.__name__
        context.close()


def reach(page: Page, selector: str, key: str = "Tab") -> None:
    """Press a key until the focus is on an element that matches."""
    for _ in range(80):
        page.keyboard.press(key)
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{key} does not reach {selector}")


def test_a_walk_by_keyboard_through_chat_stop_token_view_engine_and_learn(browser: Browser, both: Servers) -> None:
    page = browser.new_page()
    complaints = complaints_of(page)
    page.route("**/v1/chat/completions", lambda route: route.continue_(url=f"{both.chat.url}/v1/chat/completions"))
    press, announcement = page.keyboard.press, page.locator("#announcement")
    page.goto(both.engine_url)
    expect(page.locator("#message")).to_be_focused()
    both.chat.answers = [says("one two three"), Answer(["word "] * 20, then=both.hold)]
    page.keyboard.type("Count")
    press("Enter")
    expect(announcement).to_have_text("The answer is complete.")
    page.keyboard.type("Go on")
    press("Enter")
    expect(page.locator(".message.assistant .text").last).to_contain_text("word word")
    press("Escape")
    expect(announcement).to_have_text("Stopped.")

    while page.evaluate("document.activeElement.textContent") != "Tokens":
        reach(page, ".message.assistant button", "Shift+Tab")
    press("Enter")
    expect(page.locator("#tab-tokens")).to_be_focused()
    reach(page, ".token")
    press("ArrowRight")
    expect(page.locator("#token-details")).to_contain_text("Token 2")
    press("Escape")
    expect(page.locator("#open-inspector")).to_be_focused()

    reach(page, "[data-view=engine]", "Shift+Tab")
    press("Enter")
    expect(page.locator(".requests tbody tr").nth(3)).to_be_visible()
    reach(page, "canvas[aria-label^=Blocks]")
    press("ArrowRight")
    press("Enter")
    expect(page.locator("#explained")).to_be_focused()
    expect(page.locator("#explained")).to_contain_text("Belongs to")
    press("Escape")
    expect(page.locator("#explained")).to_be_hidden()

    reach(page, "[data-view=learn]", "Shift+Tab")
    press("Enter")
    reach(page, "#learn-text")
    press("Control+a")
    page.keyboard.type(TRACED)
    reach(page, ".learn-form button")
    press("Enter")
    expect(page.locator(".guess")).to_be_visible()
    reach(page, ".guess button")
    press("Enter")
    expect(page.locator(".verdict")).to_be_visible()
    page.close()
    assert complaints == []
