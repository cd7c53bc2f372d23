"""The page in a browser: streamed chat, token probabilities and the engine view."""

import itertools
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.support.browser_page import FRAMES_A_SECOND, IN_BROWSER
from tests.support.running_server import RunningServer, eventually, running_server

KEY = "the-key-of-the-page"
LENGTHS = """() => {
    window.lengths = [];
    const note = () => window.lengths.push(document.querySelector(".message.assistant")?.textContent.length ?? 0);
    new MutationObserver(note).observe(document.getElementById("messages"), { childList: true });
}"""


@pytest.fixture(scope="module")
def server(real_model_path: Path) -> Iterator[RunningServer]:
    # 96 blocks: a few long answers fill them
    options = ["--served-model-name", "smollm2", "--kv-cache-memory", str(96 * 2 * 30 * 3 * 64 * 2 * 16)]
    with running_server(real_model_path, *options, "--max-model-len", "1024", "--api-key", KEY) as running:
        running.http.headers["authorization"] = f"Bearer {KEY}"
        yield running


@pytest.fixture
def page(browser: Browser, server: RunningServer) -> Iterator[Page]:
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server.url)
    page.fill("#key", KEY)
    page.dispatch_event("#key", "change")
    yield page
    page.close()
    assert complaints == []


def aborted(server: RunningServer) -> int:
    """Return how many requests were given up by their clients."""
    found = re.search(
        r'request_incomplete_total\{[^}]*finished_reason="abort"[^}]*\} (\d+)', server.http.get("/metrics").text
    )
    return int(found[1]) if found else 0


def shown_step(page: Page) -> int:
    """Return the number of the step on the screen."""
    found = re.search(r"Step (\d+)", page.locator("#numbers").inner_text())
    assert found
    return int(found[1])


class TestInBrowser:
    """What needs chromium."""

    pytestmark = IN_BROWSER

    def test_a_chat_streams_and_shows_how_probable_its_tokens_were(self, page: Page) -> None:
        page.fill("#temperature", "0")
        page.fill("#question", "What is the capital of France?")
        page.click("#send")
        answer = page.locator(".message.assistant")
        expect(answer).to_contain_text("The capital of France is Paris.", timeout=30_000)
        expect(answer.locator(".facts")).to_have_text(
            re.compile(r"\d+ tokens, [\d.]+ tokens/s; first token after \d+ ms")
        )
        page.check("#token-view")
        token = page.locator(".token", has_text="Paris")
        token.hover()
        expect(page.locator("#token-details")).to_have_text(
            re.compile(r'" Paris": probability [\d.]+ %. Alternatives: ')
        )
        page.reload()
        expect(page.locator(".message.assistant")).to_contain_text("Paris")  # kept in the browser

    def test_an_answer_is_shown_while_it_is_generated(self, page: Page) -> None:
        page.fill("#temperature", "0")
        page.fill("#max-tokens", "200")
        page.fill("#question", "Write a very long story about a caravan.")
        page.evaluate(LENGTHS)
        page.click("#send")
        expect(page.locator(".message.assistant .facts")).to_be_visible(timeout=60_000)
        lengths = page.evaluate("window.lengths")
        assert len(set(lengths)) >= 3
        assert lengths == sorted(lengths)

    def test_an_answer_can_be_stopped_and_regenerated(self, page: Page, server: RunningServer) -> None:
        page.fill("#max-tokens", "800")
        page.fill("#temperature", "0")
        page.fill("#question", "Tell me a very long story about a caravan.")
        page.click("#send")
        expect(page.locator(".message.assistant")).to_contain_text(re.compile(r"\w+ \w+ \w+"), timeout=30_000)
        assert server.metric("num_requests_running") == 1
        num_aborted = aborted(server)
        page.click("#stop")
        expect(page.locator("#send")).to_be_enabled()
        expect(page.locator("#again")).to_be_enabled()
        eventually(lambda: server.metric("num_requests_running") == 0, within_seconds=5)
        assert aborted(server) == num_aborted + 1
        before = page.locator(".message.assistant").inner_text()
        page.fill("#max-tokens", "5")
        page.click("#again")
        expect(page.locator(".message.assistant .facts")).to_have_text(re.compile("^5 tokens, "), timeout=30_000)
        # The stopped answer may have had five tokens, too.
        eventually(lambda: page.locator(".message.assistant").inner_text() != before, within_seconds=5)

    def test_an_answer_is_shown_until_a_new_one_starts(self, page: Page) -> None:
        page.fill("#max-tokens", "5")
        page.fill("#question", "Hello")
        page.click("#send")
        expect(page.locator(".message.assistant .facts")).to_be_visible(timeout=30_000)
        before = page.locator(".message.assistant").inner_text()
        page.route("**/v1/chat/completions", lambda _: None)  # never answers
        page.click("#again")
        expect(page.locator("#stop")).to_be_enabled()
        assert page.evaluate("JSON.parse(localStorage.getItem('messages')).length") == 2
        page.click("#stop")
        expect(page.locator("#send")).to_be_enabled()
        assert page.locator(".message.assistant").inner_text() == before

    def test_an_empty_answer_is_shown(self, page: Page) -> None:
        chunks = [
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"completion_tokens": 1}},
        ]
        body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
        page.fill("#question", "Hello")
        page.click("#send")
        expect(page.locator(".message.assistant .facts")).to_have_text("1 token, no text")

    def test_a_failed_message_can_be_sent_again(self, page: Page) -> None:
        page.route("**/v1/chat/completions", lambda _: None)  # never answers
        page.fill("#max-tokens", "5")
        page.fill("#question", "Hello")
        page.click("#send")
        expect(page.locator(".message.assistant")).to_be_visible()
        page.click("#stop")
        expect(page.locator(".message.assistant")).to_have_count(0)
        page.unroute("**/v1/chat/completions")
        page.click("#again")
        expect(page.locator(".message.assistant .facts")).to_be_visible(timeout=30_000)
        expect(page.locator(".message.user")).to_have_count(1)

    def test_a_conversation_continues_when_the_browser_storage_is_full(self, page: Page) -> None:
        fill = "localStorage.setItem(`x${n++}`, 'x'.repeat(size))"
        page.evaluate(
            f"let n = 0; for (let size = 2 ** 20; size; size >>= 1) for (;;) try {{ {fill} }} catch {{ break }}"
        )
        page.fill("#max-tokens", "20")
        for number, question in enumerate(("Hello", "What is the capital of France?"), 1):
            page.fill("#question", question)
            page.click("#send")
            expect(page.locator(".message.assistant .facts")).to_have_count(number, timeout=30_000)
            expect(page.locator("#send")).to_be_enabled()
        page.evaluate("localStorage.clear(); localStorage.setItem('messages', '{')")
        page.reload()
        expect(page.locator("#send")).to_be_enabled()
        assert page.locator(".message").count() == 0

    def test_markup_in_texts_is_text(self, page: Page) -> None:
        page.fill("#max-tokens", "3")
        page.fill("#question", "<img src=x onerror=alert(1)> **bold** `code`")
        page.click("#send")
        user = page.locator(".message.user").first
        expect(user).to_contain_text("<img src=x onerror=alert(1)>")
        assert user.locator("img").count() == 0
        expect(user.locator("strong")).to_have_text("bold")
        expect(user.locator("code")).to_have_text("code")
        expect(page.locator("#send")).to_be_enabled(timeout=30_000)

    def test_the_engine_view_shows_used_blocks_prefix_hits_and_preemptions(
        self, page: Page, server: RunningServer
    ) -> None:
        page.click("#show-engine")
        expect(page.locator("#numbers")).to_contain_text("0 running, 0 waiting", timeout=10_000)

        def ask(index: int) -> None:
            prompt = "A long beginning that all of them share, word for word, so that it is computed once. " * 3
            body = {"model": "smollm2", "prompt": f"{prompt} {index}", "max_tokens": 400, "ignore_eos": True}
            server.http.post("/v1/completions", json=body)

        asking = [threading.Thread(target=ask, args=(index,)) for index in range(6)]
        for thread in asking:
            thread.start()
        expect(page.locator("#numbers")).to_have_text(re.compile(r"[1-9] run"), timeout=20_000)
        expect(page.locator("#batch tr").first).to_contain_text(re.compile("prefill|decode"))
        expect(page.locator("#numbers")).to_contain_text(re.compile(r"[1-9]\d* of \d+ blocks used"))
        page.locator("#batch button").first.focus()
        page.wait_for_timeout(600)  # two views later it is still there
        page.keyboard.press("Enter")
        expect(page.locator("#lesson")).to_contain_text("A sequence ")
        expect(page.locator("#events")).to_contain_text(
            re.compile(r"join \d+ prefix hit, [1-9]\d* tokens"), timeout=30_000
        )
        expect(page.locator("#events")).to_contain_text("preempt", timeout=60_000)
        page.click("#pause")
        page.locator("#events button", has_text="preempt").first.click()
        expect(page.locator("#lesson")).to_contain_text("ran out of blocks")
        with page.context.expect_page() as opened:
            page.locator("#lesson a").click()
        expect(opened.value.locator("h2:target")).to_have_text("8. Paging")
        opened.value.close()
        page.locator("#pool").click(position={"x": 5, "y": 5})
        expect(page.locator("#lesson p").first).to_have_text(re.compile("^A (free )?block "))
        page.locator("[data-lesson=shared]").press("Enter")
        expect(page.locator("#lesson")).to_contain_text("several sequences use")
        steps = [shown_step(page)]
        for way in ("back", "back", "back", "forward"):
            page.click(f"#{way}")
            expect(page.locator("#numbers")).not_to_contain_text(f"Step {steps[-1]}:")
            steps.append(shown_step(page))
        assert [before - after for before, after in itertools.pairwise(steps)] == [1, 1, 1, -1]
        expect(page.locator("#snapshot-text")).to_contain_text("ago")
        shown = page.eval_on_selector_all(
            "#events li", "all => all.map(one => [Number(one.dataset.step), one.ariaCurrent])"
        )
        assert max(step for step, _ in shown) <= steps[-1]
        assert all((current == "step") == (step == steps[-1]) for step, current in shown)
        page.click("#pause")
        for thread in asking:
            thread.join()
        expect(page.locator("#numbers")).to_contain_text("0 running, 0 waiting", timeout=30_000)
        expect(page.locator("#numbers")).to_contain_text(" 0 of ")
        page.click("#show-chat")

    def test_pausing_before_the_first_snapshot_works(self, page: Page) -> None:
        page.route("**/v1/engine/events", lambda _: None)  # never answers
        page.click("#show-engine")
        for button in ("back", "forward", "pause", "pause"):
            page.click(f"#{button}")
        page.unroute("**/v1/engine/events")
        page.click("#show-chat")
        page.click("#show-engine")
        expect(page.locator("#numbers")).to_contain_text("0 run", timeout=10_000)
        expect(page.locator("#trouble")).to_be_hidden()

    def test_a_hidden_page_does_not_subscribe(self, page: Page, server: RunningServer) -> None:
        ended: list[str] = []
        page.on("requestfailed", lambda request: ended.append(request.url))
        page.click("#show-engine")
        expect(page.locator("#numbers")).to_contain_text("0 run", timeout=10_000)
        hide = "is => { Object.defineProperty(document, 'hidden', {value: is, configurable: true});"
        hide += " document.dispatchEvent(new Event('visibilitychange')) }"
        page.evaluate(hide, True)
        page.wait_for_timeout(300)
        assert ended == [f"{server.url}/v1/engine/events"]
        with page.expect_response("**/v1/engine/events"):
            page.evaluate(hide, False)

    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_both_views_are_accessible_by_keyboard_and_screen_reader(
        self, page: Page, server: RunningServer, theme: str
    ) -> None:
        if theme == "dark":
            page.click("#theme")
        page.fill("#max-tokens", "5")
        page.fill("#question", "Hello")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # on Send
        expect(page.locator(".message.assistant .facts")).to_be_visible(timeout=30_000)
        for view in ("chat", "engine"):
            page.click(f"#show-{view}")
            found = Axe().run(page).response["violations"]
            serious = [one for one in found if one["impact"] in ("serious", "critical")]
            assert serious == [], [(one["id"], one["nodes"][0]["html"]) for one in serious]

    @pytest.mark.timing
    def test_the_page_keeps_up_with_thirty_two_streams(self, page: Page, server: RunningServer) -> None:
        page.click("#show-engine")

        def ask(index: int) -> None:
            body = {"model": "smollm2", "prompt": f"{index}", "max_tokens": 45, "ignore_eos": True, "n": 4}
            server.http.post("/v1/completions", json=body)

        asking = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
        for thread in asking:
            thread.start()
        expect(page.locator("#numbers")).to_contain_text("32 run", timeout=20_000)
        frames = page.evaluate(FRAMES_A_SECOND)
        for thread in asking:
            thread.join()
        print(f"{frames} frames a second")
        assert frames >= 30
        page.click("#show-chat")
