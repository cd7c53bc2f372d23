"""The engine view in a browser, over the real scheduler without a model."""

import re
from collections.abc import Iterator

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.server.web.open_page import FAILED_LOADS, complaints_of
from tests.server.web.simulated_engine import SimulatedEngine, simulated_engine
from tests.support.browser_page import SLOW_BROWSER
from tests.support.waiting import eventually

pytestmark = SLOW_BROWSER

MAX_SCRIPT_MS = 2.0  # in a frame
NUM_TRIES = 3  # other work of the machine only adds time, so the least disturbed five seconds count
TIMED_FRAMES = """(() => {
    const request = window.requestAnimationFrame.bind(window);
    window.frameTimes = [];
    window.requestAnimationFrame = (draw) => request((at) => {
        const began = performance.now();
        draw(at);
        window.frameTimes.push(performance.now() - began);
    });
})()"""

Served = tuple[str, SimulatedEngine, uvicorn.Server]


@pytest.fixture
def served() -> Iterator[Served]:
    with simulated_engine() as made:
        yield made


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints = complaints_of(page)
    page.goto(f"{served[0]}/#engine")
    expect(page.locator(".requests tbody tr").nth(5)).to_be_visible(timeout=20_000)
    yield page
    page.close()
    assert [text for text in complaints if not text.startswith(FAILED_LOADS)] == []


def shown_step(page: Page) -> int:
    """Return the number of the step on the screen."""
    found = re.match(r"Step ([\d,]+)", page.locator(".scrubber output").inner_text())
    assert found
    return int(found[1].replace(",", ""))


def computed(page: Page) -> dict[str, int]:
    """Return how many tokens of each running request are computed at the step on the screen."""
    rows = page.locator(".requests tbody tr").all()
    found = {
        str(row.get_attribute("data-request")): re.search(r"([\d,]+) of [\d,]+ computed", row.inner_text())
        for row in rows
    }
    return {number: int(one[1].replace(",", "")) for number, one in found.items() if one}


def test_the_scrubber_goes_step_by_step_and_shows_each_as_it_was(page: Page) -> None:
    first = shown_step(page)
    while shown_step(page) < first + 12:  # as many are kept as it goes back
        page.wait_for_timeout(50)
    page.locator(".scrubber .pause").click()
    before, numbers = shown_step(page), computed(page)
    for _ in range(12):
        page.locator(".scrubber .back").click()
        expect(page.locator(".scrubber output")).to_contain_text(f"Step {before - 1:,}")
        before, earlier = before - 1, computed(page)
        both = numbers.keys() & earlier.keys()
        assert any(earlier[number] < numbers[number] for number in both)
        numbers = earlier
    page.locator(".scrubber .on").click()
    expect(page.locator(".scrubber output")).to_contain_text(f"Step {before + 1:,}")
    page.wait_for_timeout(600)  # snapshots go on coming
    assert shown_step(page) == before + 1
    page.locator(".scrubber .pause").click()
    expect(page.locator(".scrubber output")).to_contain_text("now")


def test_a_press_explains_this_block_and_links_into_the_guide_and_the_code(page: Page) -> None:
    page.locator(".scrubber .pause").click()
    blocks = page.get_by_role("application", name="Blocks in use")
    blocks.click(position={"x": 6, "y": 62})
    explained = page.locator("#explained")
    expect(explained.locator("h2")).to_have_text(re.compile(r"^Block \d+$"))
    expect(explained).to_contain_text(re.compile(r"Tokens\s*0 to 15, of the prompt; \d+ of 16 are computed"))
    expect(explained).to_contain_text("Belongs to")
    with page.context.expect_page() as opened:
        explained.get_by_role("link", name="Chapter").click()
    expect(opened.value.locator("h2:target")).to_have_text(re.compile("Paging|Sharing prefixes"))
    opened.value.close()
    address = explained.get_by_role("link", name=" in scheduler/").get_attribute("href")
    assert address is not None
    assert page.request.get(address.partition("#")[0]).text().startswith('"""')
    page.keyboard.press("Escape")
    expect(explained).to_be_hidden()
    blocks.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(explained).to_contain_text("Tokens")
    page.keyboard.press("Escape")
    row = page.locator(".requests tbody tr").nth(1)
    row.locator("button").click()
    expect(explained.locator("h2")).to_have_text(f"Request {row.get_attribute('data-request')}")
    page.keyboard.press("Escape")
    expect(page.locator(".panel.table h2")).to_have_text(f"Block table of request {row.get_attribute('data-request')}")
    page.locator(".panel.table tbody button").first.click()
    expect(explained.locator("h2")).to_have_text(re.compile(r"^Block \d+$"))


def test_an_engine_that_is_being_replaced_is_said(page: Page, served: Served) -> None:
    status = page.locator(".engine-view .status")
    expect(status).to_be_empty()
    served[1].is_killed = True
    expect(status).to_contain_text("The engine is being replaced.")
    expect(page.locator(".events")).to_contain_text("the engine is being replaced")
    expect(page.locator(".requests tbody tr")).to_have_count(0)
    served[1].is_killed = False
    expect(status).to_be_empty()
    expect(page.locator(".requests tbody tr").nth(5)).to_be_visible()


def test_events_have_time_step_and_plain_words_and_can_be_filtered(page: Page) -> None:
    events = page.locator(".events")
    expect(events).to_contain_text(re.compile(r"\d\d:\d\d:\d\d\s+step \d+\s*\d+ ended: its limit of tokens"))
    expect(events).to_contain_text(re.compile(r"\d+ starts: prefix hit, 48 tokens"))
    page.get_by_label("Show").select_option("preemptions")
    expect(events.locator("li").first).to_be_visible(timeout=30_000)
    kinds = events.locator("li").evaluate_all("all => all.map(one => one.dataset.kind)")
    assert {*kinds} <= {"preempt", "evict"}
    events.locator("button", has_text="is preempted").first.click(timeout=30_000)
    expect(page.locator("#explained")).to_contain_text("The pool was full")


def test_a_view_without_a_server_says_how_old_it_is(page: Page, served: Served) -> None:
    served[2].should_exit = True
    served[1].live_view.close()
    expect(page.locator(".engine-view .status")).to_have_text(re.compile(r"Last heard [1-9] s ago\."))
    expect(page.locator(".engine-view.old")).to_be_visible()


def test_a_hidden_page_does_not_subscribe(page: Page, served: Served) -> None:
    engine = served[1]
    assert engine.is_observed()
    hide = "is => { Object.defineProperty(document, 'hidden', {value: is, configurable: true});"
    hide += " document.dispatchEvent(new Event('visibilitychange')) }"
    page.evaluate(hide, True)
    eventually(lambda: not engine.is_observed())
    page.evaluate(hide, False)
    eventually(engine.is_observed)
    page.evaluate("location.hash = '#server'")  # another view
    eventually(lambda: not engine.is_observed())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_view_is_accessible(page: Page, theme: str) -> None:
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    page.locator("details summary").click()
    page.locator(".scrubber .pause").click()
    for is_explained in (False, True):
        if is_explained:
            page.locator(".requests tbody button").first.click()
        found = Axe().run(page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert serious == [], [(one["id"], one["nodes"][0]["html"]) for one in serious]


@pytest.mark.parametrize("width", [320, 390, 820])
def test_a_narrow_screen_needs_no_sideways_scrolling(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.wait_for_timeout(600)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    assert (
        page.evaluate(
            "(() => { const main = document.querySelector('.engine-view').parentElement;"
            " return main.scrollWidth - main.clientWidth })()"
        )
        <= 0
    )


@pytest.mark.timing
@pytest.mark.parametrize(("num_blocks", "num_requests"), [(640, 32), (4096, 256)])
def test_drawing_takes_little_of_a_frame(browser: Browser, num_blocks: int, num_requests: int) -> None:
    with simulated_engine(num_blocks=num_blocks, max_num_seqs=num_requests, num_requests=num_requests) as (url, *_):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.add_init_script(TIMED_FRAMES)
        page.goto(f"{url}/#engine")
        expect(page.locator(".requests tbody tr").nth(min(num_requests, 64) - 2)).to_be_attached(timeout=30_000)
        page.wait_for_timeout(2000)
        for _ in range(NUM_TRIES):
            page.evaluate("window.frameTimes.length = 0")
            page.wait_for_timeout(5000)
            times = page.evaluate("window.frameTimes")
            each, mean = sum(times) / len(times), sum(times) / 5 / 60
            print(f"{len(times)} drawings in 5 s, {each:.2f} ms each, {mean:.3f} ms a frame at 60 frames")
            if mean <= MAX_SCRIPT_MS:
                break
        page.close()
    assert len(times) >= 10
    assert mean <= MAX_SCRIPT_MS
