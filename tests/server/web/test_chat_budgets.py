"""What the chat costs: bytes of the first load, milliseconds while an answer streams."""

import re

import pytest
from playwright.sync_api import Browser, Response, expect

from tests.server.web.fake_server import FakeServer, says
from tests.server.web.open_page import answer_of, open_page
from tests.support.browser_page import SLOW_BROWSER

MAX_FIRST_KB = 60  # compressed, of all files that the first load fetches
MAX_LATER_KB = 75  # of all that is fetched later: colours, formulas, inspector, settings
MAX_FRAME_MS = 4  # script of a frame, while 150 tokens come in a second
TOKENS_A_FRAME = 150 / 60

pytestmark = SLOW_BROWSER


def test_the_page_is_small(browser: Browser, fake: FakeServer) -> None:
    sizes: dict[str, int] = {}

    def note(response: Response) -> None:
        name = response.url.removeprefix(fake.url)
        if name == "/" or name.startswith("/web/"):
            assert response.headers.get("content-encoding") == "gzip" or int(response.headers["content-length"]) < 500
            sizes[name] = int(response.headers["content-length"])

    with open_page(browser, fake, "/livez") as page:  # a page to listen from before the chat is loaded
        page.on("response", note)
        page.goto(fake.url)
        expect(page.locator("#model-chip")).to_contain_text("tiny")
        first = dict(sizes)
        fake.answers = [says("```python\nx = 1\n```\n```json\n1\n```\n$x^2$")]
        answer_of(page, "Show me")
        expect(page.locator("math")).to_be_visible()
        page.click("#open-inspector")
        page.click("#open-settings")
        expect(page.locator("#settings")).to_be_visible()
        later = {name: size for name, size in sizes.items() if name not in first}
        preloaded = page.eval_on_selector_all("link[rel=modulepreload]", "all => all.map(one => one.href)")
    scripts = {name for name in first if name.endswith(".js")} - {"/web/main.js", "/web/saved_theme.js"}
    assert {url.removeprefix(fake.url) for url in preloaded} == scripts  # all are asked for at once
    kilobytes = sum(first.values()) / 1000
    print(f"first load {kilobytes:.1f} kB in {len(first)} files, later {sum(later.values()) / 1000:.1f} kB")
    assert "/web/vendor/marked/marked.esm.js" in first
    assert any(re.search("temml", name) for name in later)
    assert kilobytes <= MAX_FIRST_KB
    assert sum(later.values()) / 1000 <= MAX_LATER_KB


@pytest.mark.timing
def test_a_fast_answer_takes_little_of_each_frame(browser: Browser, fake: FakeServer) -> None:
    paragraph = "A *word* and `code` of an answer that goes on for a while, with a [link](https://example.org).\n\n"
    text = (paragraph * 3 + "| a | b |\n|--|--|\n| 1 | 2 |\n\n- one\n- two\n\n```python\nx = 1\ny = 2\n```\n\n") * 25
    with open_page(browser, fake) as page:
        times = page.evaluate(
            """async ([text, charactersAFrame]) => {
                const { newConversation, newMessage } = await import("/web/chat/conversation.js");
                const { MessageView } = await import("/web/chat/message_view.js");
                const message = newMessage(newConversation(), null, "assistant");
                const view = new MessageView(message, () => {});
                document.querySelector("#scroller > div").replaceChildren(view.node);
                const times = [];
                for (let end = 0; end < text.length; end += charactersAFrame) {
                    await new Promise(requestAnimationFrame);
                    const began = performance.now();
                    message.content = text.slice(0, end);
                    view.drawText();
                    times.push(performance.now() - began);
                }
                return times;
            }""",
            [text, round(4 * TOKENS_A_FRAME)],  # four characters in a token
        )
    times.sort()
    mean, high = sum(times) / len(times), times[int(0.99 * len(times))]
    print(f"{len(times)} frames of {len(text)} characters: {mean:.2f} ms on average, 99 % under {high:.2f} ms")
    assert mean < MAX_FRAME_MS / 2
    assert high < MAX_FRAME_MS
