"""The server view and the API reference in a browser."""

from collections.abc import Iterator

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from caravan.server.http.api_keys import ApiKeys
from tests.server.web.simulated_engine import simulated_engine
from tests.support.browser_page import SLOW_BROWSER

pytestmark = SLOW_BROWSER

KEYS = {"ada": "a-long-key-of-ada", "bob": "a-long-key-of-bob"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with simulated_engine(keys=ApiKeys(KEYS)) as (url, *_):
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.add_init_script(f"sessionStorage.setItem('key', '{KEYS['ada']}')")
    page.goto(f"{url}/#server")
    yield page
    page.close()
    assert complaints == []


def test_the_server_view_shows_state_limits_usage_and_options(page: Page) -> None:
    view = page.locator(".server-view")
    for text in (
        "ready",
        "1.2.3",
        "Model simulated",
        "48 blocks of 16 tokens",
        "512 tokens, prompt and answer",
        "8 MiB",
    ):
        expect(view).to_contain_text(text)
    expect(view).to_contain_text("Your key, ada")
    expect(view).not_to_contain_text("bob")
    limits = view.locator("details", has_text="Limits")
    limits.locator("summary").click()
    expect(limits.locator("tr.set")).to_have_text("--max-num-seqs8set")
    page.wait_for_timeout(5500)  # it is refreshed, and stays open
    expect(limits.locator("tr.set")).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_server_view_is_accessible(page: Page, theme: str) -> None:
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    expect(page.locator(".server-view")).to_contain_text("Your key, ada")
    page.locator(".server-view summary").first.click()
    found = Axe().run(page).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert serious == [], [(one["id"], one["nodes"][0]["html"]) for one in serious]


def test_the_api_reference_is_under_the_policy_of_the_page(url: str) -> None:
    policies = {
        path: httpx.get(url + path, headers={"accept": "text/html"}, trust_env=False).headers for path in ("/", "/docs")
    }
    policy = policies["/docs"]["content-security-policy"]
    assert policy == policies["/"]["content-security-policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
