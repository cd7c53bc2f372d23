"""The guide in a browser: its links into the source code open the files in place."""

import re
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from tests.server.web.fake_server import FakeServer
from tests.server.web.open_page import open_page
from tests.support.browser_page import SLOW_BROWSER

ROOT = Path(__file__).parents[3]
GUIDE = "/web/llama2-from-scratch.html"

pytestmark = SLOW_BROWSER


def test_a_link_into_the_code_opens_the_file_in_place_and_closes_it(browser: Browser, fake: FakeServer) -> None:
    with open_page(browser, fake, GUIDE) as page:
        link = page.locator("a.code-link", has_text="model/llama.py").first
        expect(link).to_have_attribute("aria-expanded", "false")
        link.click()
        part = page.locator(".code-in-place")
        expect(part.locator("pre")).to_have_text((ROOT / "model/llama.py").read_text("utf-8"))
        expect(link).to_have_attribute("aria-expanded", "true")
        assert page.url == fake.url + GUIDE
        other = page.locator("a.code-link", has_text="scheduler/engine.py").last
        other.press("Enter")
        expect(part).to_have_count(2)
        result: Any = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]})
        assert [one["id"] for one in result.response["violations"]] == []
        part.first.get_by_role("button", name="Close").click()
        expect(part).to_have_count(1)
        expect(link).to_be_focused()
        other.click()
        expect(part).to_have_count(0)


def test_the_file_is_scrolled_to_what_the_text_names(browser: Browser, fake: FakeServer) -> None:
    with open_page(browser, fake, GUIDE) as page:
        paragraph = page.locator("p", has_text="The last one is apply_rope")
        paragraph.locator("a.code-link", has_text="model/rope.py").click()
        mark = page.locator(".code-in-place mark")
        expect(mark).to_have_text("def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:")
        assert page.locator(".code-in-place pre").inner_text() == (ROOT / "model/rope.py").read_text("utf-8")
        assert page.locator(".code-in-place pre").evaluate("pre => pre.scrollTop") > 0
        paragraph.locator("a.code-link", has_text="model/checkpoint/row_order.py").click()
        expect(mark).to_have_count(2)
        expect(mark.first).to_have_text(re.compile(r"^def half_split\("))


def test_a_file_that_cannot_be_read_says_so_in_place(browser: Browser, fake: FakeServer) -> None:
    with open_page(browser, fake, GUIDE) as page:
        page.route("**/web/code/model/rope.py", lambda route: route.abort())
        page.locator("a.code-link", has_text="model/rope.py").first.click()
        expect(page.locator(".code-in-place pre")).to_have_text("The server cannot be reached.")


def test_the_code_fits_a_phone(browser: Browser, fake: FakeServer) -> None:
    with open_page(browser, fake, GUIDE, viewport={"width": 320, "height": 700}) as page:
        page.locator("a.code-link", has_text="model/llama.py").first.click()
        expect(page.locator(".code-in-place pre")).to_contain_text("class Attention")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
