"""The chat in a browser, over a server that answers as each test says: what is shown, and what is sent."""

import json
import re
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.web.fake_server import CONTEXT, Answer, FakeServer, says
from tests.server.web.markdown_example import MARKDOWN
from tests.server.web.open_page import answer_of, ask, open_page, reload_when_saved
from tests.support.browser_page import SLOW_BROWSER

pytestmark = SLOW_BROWSER


@pytest.fixture
def page(browser: Browser, fake: FakeServer) -> Iterator[Page]:
    with open_page(browser, fake) as page:
        expect(page.locator("#model-chip")).to_have_text(f"tiny · int4 · {CONTEXT} tokens")
        yield page


def test_the_first_visit_shows_the_model_three_questions_and_where_words_go(page: Page, fake: FakeServer) -> None:
    welcome = page.locator(".welcome")
    expect(welcome).to_contain_text("Chat with tiny")
    expect(welcome).to_contain_text("Conversations stay in this browser.")
    expect(welcome.locator(".questions button")).to_have_count(3)
    expect(page.locator("#message")).to_be_focused()
    question = welcome.locator(".questions button").first.inner_text()
    welcome.locator(".questions button").first.click()
    expect(page.locator(".message.assistant .text")).to_have_text("Hello there.")
    assert fake.bodies[0]["messages"] == [{"role": "user", "content": question}]


def test_a_request_leaves_limits_and_sampling_to_the_server(page: Page, fake: FakeServer) -> None:
    answer_of(page, "Hi")
    body = fake.bodies[0]
    assert {*body} == {
        "model",
        "messages",
        "stream",
        "stream_options",
        "seed",
        "logprobs",
        "top_logprobs",
        "explain",
    }
    answer_of(page, "Hi again")
    assert fake.bodies[0]["seed"] != fake.bodies[1]["seed"]


def test_settings_are_sent_and_survive_a_reload(page: Page, fake: FakeServer) -> None:
    page.click("#open-settings")
    expect(page.locator("#set-temperature")).to_have_attribute("placeholder", "0.2")
    page.fill("#set-temperature", "1.3")
    page.fill("#set-maxTokens", "40")
    page.fill("#set-system", "Be brief.")
    page.check("[name=seed][value=fixed]")
    page.fill("#set-seed", "7")
    page.locator("#settings button", has_text="Save").click()
    page.reload()
    answer_of(page, "Hi")
    body = fake.bodies[0]
    assert (body["temperature"], body["max_completion_tokens"], body["seed"]) == (1.3, 40, 7)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


def test_the_readers_text_is_shown_as_it_was_written(page: Page, fake: FakeServer) -> None:
    text = "3*4*5 <b>&amp;</b>\n    # no headline\n\n  `x` $y$  end"
    answer_of(page, text)
    shown = page.locator(".message.user .text")
    assert shown.evaluate("node => node.textContent") == text
    assert shown.evaluate("node => node.childElementCount") == 0
    assert shown.evaluate("node => getComputedStyle(node).whiteSpace") == "pre-wrap"
    assert fake.bodies[0]["messages"][0]["content"] == text


def test_answers_are_markdown_as_chat_models_write_it(page: Page, fake: FakeServer) -> None:
    fake.answers = [says(MARKDOWN)]
    answer_of(page, "Show me")
    text = page.locator(".message.assistant .text")
    expect(text.locator("h3")).to_have_text("Title")
    expect(text.locator("em")).to_have_text("word")
    expect(text.locator("strong")).to_have_text("strong one")
    expect(text.locator("del")).to_have_text("gone")
    expect(text.locator("p > code")).to_have_text("code < 3")
    expect(text.locator("p").first).to_contain_text("2 * 3 * 4 = 24 & <b>no markup</b>.")
    expect(text.locator("ol > li")).to_have_count(2)
    expect(text.locator("ol ul > li")).to_have_text("nested")
    expect(text.locator(".table-scroll td.align-right")).to_have_text("22")
    expect(text.locator("blockquote")).to_have_text("quoted")
    expect(text.locator("li.task input[type=checkbox]")).to_be_checked()
    expect(text.locator("hr")).to_have_count(1)
    expect(text.locator("a")).to_have_attribute("href", "https://example.org/a?b=1")
    expect(text.locator("a")).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(text).to_contain_text("[bad one](javascript:alert(1))")
    expect(text.locator(".code-head")).to_contain_text("python")
    expect(text.locator("pre .code-keyword").first).to_have_text("def")
    expect(text.locator("pre")).to_have_text("def double(x):\n    return 2 * x")
    expect(text.locator("math mfrac")).to_have_count(1)


def test_code_is_copied_without_its_colours(page: Page, fake: FakeServer) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    fake.answers = [says("```js\nlet x = 1;\n```")]
    answer_of(page, "Code")
    page.locator(".code button").click()
    expect(page.locator(".code button")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "let x = 1;"


def test_a_stream_makes_the_same_nodes_as_the_whole_text(page: Page) -> None:
    differing = page.evaluate(
        """async (texts) => {
            const { StreamedMarkdown } = await import("/web/chat/streamed_markdown.js");
            const differing = [];
            for (const text of texts) for (const size of [1, 7, 40]) {
                const roots = [document.createElement("div"), document.createElement("div")];
                const [streamed, whole] = roots.map((root) => new StreamedMarkdown(root));
                for (let end = size; end < text.length; end += size) streamed.update(text.slice(0, end));
                streamed.finish(text);
                whole.finish(text);
                const areSame = () => roots[0].isEqualNode(roots[1]);
                const deadline = Date.now() + 10_000; // colours and formulas come with their libraries
                do await new Promise((done) => setTimeout(done, 30)); while (!areSame() && Date.now() < deadline);
                if (!areSame()) differing.push([text, size]);
            }
            return differing;
        }""",
        [
            MARKDOWN,
            MARKDOWN * 3,
            "a\r\nb\r\n\r\n- c\r\n\r\n- d\r\n",
            "text\n===\nmore\n\n[a][x] b\n\nc\n\n[x]: https://example.org\n",
            "<div>\n\nin *html*\n\n</div>\n\n1. a\n\n\n2. b\n\n        code\n",
        ],
    )
    assert differing == []


def test_the_conversation_follows_the_answer_until_the_reader_scrolls_up(page: Page, fake: FakeServer) -> None:
    held = threading.Event()
    fake.answers = [says("\n\n".join(f"Line {n}" for n in range(60))), Answer(["\n\nmore"] * 60, hold=held)]
    answer_of(page, "Long")
    distance = (
        "() => { const s = document.getElementById('scroller'); return s.scrollHeight - s.scrollTop - s.clientHeight }"
    )
    page.wait_for_function(f"({distance})() < 5")
    expect(page.locator("#newest")).to_be_hidden()
    ask(page, "More")
    expect(page.locator(".message.user")).to_have_count(2)
    page.hover("#scroller")
    page.mouse.wheel(0, -600)
    expect(page.locator("#newest")).to_be_visible()
    held.set()
    expect(page.locator("#send")).to_have_text("Send")
    assert page.evaluate(distance) > 500
    page.click("#newest")
    page.wait_for_function(f"({distance})() < 5")
    expect(page.locator("#newest")).to_be_hidden()
    reload_when_saved(page)
    expect(page.locator(".message")).to_have_count(4)
    page.wait_for_function(f"({distance})() < 5")


def test_the_composer_stays_in_sight_and_grows_to_eight_lines(page: Page, fake: FakeServer) -> None:
    fake.answers = [says("\n\n".join(["word"] * 80))]
    answer_of(page, "Long")
    assert page.locator("#send").evaluate("node => node.getBoundingClientRect().bottom <= innerHeight")
    heights = []
    for lines in (1, 3, 8, 20):
        page.fill("#message", "\n".join(["line"] * lines))
        heights.append(page.locator("#message").evaluate("node => node.getBoundingClientRect().height"))
    assert heights[0] < heights[1] < heights[2] == heights[3]
    page.fill("#message", "one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.locator("#message").input_value() == "one\ntwo"
    page.keyboard.press("Enter")
    expect(page.locator(".message.user .text").last).to_have_text("one\ntwo")


def test_an_answer_can_be_stopped_by_button_and_by_escape_and_continued(page: Page, fake: FakeServer) -> None:
    for stop in ("button", "Escape"):
        fake.answers = [Answer(["word "] * 3_000, seconds=0.02), says("the end.")]
        ask(page, "Go")
        answer = page.locator(".message.assistant").last
        expect(answer.locator(".text")).to_contain_text("word word")
        expect(page.locator("#send")).to_have_text("Stop")
        page.click("#send") if stop == "button" else page.keyboard.press("Escape")
        expect(answer.locator(".notice")).to_contain_text("You stopped this answer.")
        expect(page.locator("#send")).to_have_text("Send")
        before = answer.locator(".text").inner_text()
        answer.locator(".notice button", has_text="Continue").click()
        expect(answer.locator(".text")).to_have_text(f"{before} the end.")
        expect(answer).to_have_attribute("aria-busy", "false")
        expect(answer.locator(".notice")).to_have_count(0)
        body = fake.bodies[-1]
        assert body["continue_final_message"] is True
        assert body["add_generation_prompt"] is False
        assert body["messages"][-1]["role"] == "assistant"
        assert body["messages"][-1]["content"].rstrip() == before


def test_a_double_click_sends_and_does_not_stop(page: Page) -> None:
    page.fill("#message", "Hello")
    page.locator("#send").dblclick()
    expect(page.locator(".message.assistant .text")).to_have_text("Hello there.")
    expect(page.locator(".message.assistant")).to_have_attribute("aria-busy", "false")
    expect(page.locator(".notice")).to_have_count(0)


def test_an_answer_that_is_cut_says_so_and_goes_on(page: Page, fake: FakeServer) -> None:
    page.evaluate("localStorage.setItem('settings', JSON.stringify({maxTokens: 3}))")
    fake.answers = [says("one two three", finish_reason="length"), says(" four.")]
    answer_of(page, "Count")
    notice = page.locator(".notice")
    expect(notice).to_contain_text("Cut at 3 tokens, your answer limit.")
    notice.locator("button").click()
    expect(page.locator(".message.assistant .text")).to_have_text("one two three four.")


def test_a_full_context_says_so_and_the_oldest_messages_can_be_left_out(page: Page, fake: FakeServer) -> None:
    answer_of(page, "word " * 300)
    too_long = {"message": "The maximum context length is 512 tokens.", "code": "context_length_exceeded"}
    fake.answers = [Answer(status=400, error=too_long)]
    answer_of(page, "word " * 250)
    expect(page.locator(".notice")).to_contain_text("The maximum context length is 512 tokens.")
    page.locator(".notice button", has_text="Answer without the oldest messages").click()
    expect(page.locator(".message.assistant .text").last).to_have_text("Hello there.")
    expect(page.locator(".notice")).to_contain_text("The first 2 messages were left out")
    assert [one["role"] for one in fake.bodies[-1]["messages"]] == ["user"]


def test_a_context_that_fills_up_within_an_answer_says_so(page: Page, fake: FakeServer) -> None:
    fake.answers = [says("one two", finish_reason="length")]
    answer_of(page, "Go")
    expect(page.locator(".notice")).to_contain_text("the model's context of 512 tokens is full")


def test_a_thought_is_folded(page: Page, fake: FakeServer) -> None:
    fake.answers = [Answer(["Yes."], thoughts=["Let me ", "<i>think</i>"])]
    assert answer_of(page, "Think") == "Yes."
    thought = page.locator("details.thought")
    expect(thought).not_to_have_attribute("open", "")
    thought.locator("summary").click()
    expect(thought.locator(".verbatim")).to_have_text("Let me <i>think</i>")
    answer_of(page, "And now")
    assert fake.bodies[-1]["messages"][1] == {"role": "assistant", "content": "Yes."}


def test_the_meter_shows_how_full_the_context_is(page: Page) -> None:
    page.fill("#message", "one two three")
    expect(page.locator("#meter")).to_have_text("3 of 512 tokens")
    page.keyboard.press("Enter")
    expect(page.locator("#meter")).to_have_text("5 of 512 tokens")


def test_edits_and_new_answers_are_branches(page: Page, fake: FakeServer) -> None:
    fake.answers = [says("First."), says("Second."), says("Third.")]
    answer_of(page, "A question")
    page.locator(".message.assistant button", has_text="Regenerate").click()
    expect(page.locator(".message.assistant .text")).to_have_text("Second.")
    expect(page.locator(".message.assistant .branch")).to_contain_text("2 of 2")
    page.locator(".message.user button", has_text="Edit").click()
    page.locator(".edit textarea").fill("Another question")
    page.locator(".edit textarea").press("Enter")
    expect(page.locator(".message.assistant .text")).to_have_text("Third.")
    assert fake.bodies[-1]["messages"] == [{"role": "user", "content": "Another question"}]
    page.locator(".message.user [aria-label='Previous version']").click()
    expect(page.locator(".message.user .text")).to_have_text("A question")
    page.locator(".message.assistant [aria-label='Previous version']").click()
    expect(page.locator(".message.assistant .text")).to_have_text("First.")
    reload_when_saved(page)
    expect(page.locator(".message.assistant .text")).to_have_text("First.")
    expect(page.locator(".message.assistant .branch")).to_contain_text("1 of 2")
    page.locator(".message.user button", has_text="Edit").click()
    page.locator(".edit textarea").press("Escape")
    expect(page.locator(".message.user .text")).to_have_text("A question")


def test_an_edit_that_comes_while_an_answer_is_written_is_kept(page: Page, fake: FakeServer) -> None:
    answer_of(page, "First")
    page.locator(".message.user button", has_text="Edit").click()
    fake.answers = [Answer(["word "] * 3_000, seconds=0.02)]
    ask(page, "Second")
    expect(page.locator("#send")).to_have_text("Stop")
    page.locator(".edit textarea").fill("First, edited")
    page.locator(".edit textarea").press("Enter")
    expect(page.locator("#message")).to_have_value("First, edited")
    page.keyboard.press("Escape")
    assert len(fake.bodies) == 2


def test_the_inspector_shows_tokens_timing_and_the_request(page: Page, fake: FakeServer) -> None:
    fake.timeline = [
        {"at_ms": 0.0, "event": "arrived"},
        {"at_ms": 5.0, "event": "joined", "cached_tokens": 0},
        {"at_ms": 1500.0, "event": "first token"},
        {"at_ms": 1600.0, "event": "finished", "reason": "stop"},
    ]
    answer_of(page, "It's a question")
    page.locator(".message.assistant button", has_text="Tokens").click()
    inspector = page.locator("#inspector")
    expect(inspector.locator(".token")).to_have_count(2)
    expect(inspector.locator(".legend li")).to_have_count(5)
    inspector.locator(".token").first.focus()
    expect(page.locator("#token-details")).to_contain_text(re.compile('Token 1: "Hello ", probability 81.9 %'))
    expect(page.locator("#token-details")).to_contain_text('"other"')
    page.keyboard.press("ArrowRight")
    expect(page.locator("#token-details")).to_contain_text('Token 2: "there."')
    assert inspector.locator(".token[tabindex='0']").count() == 1
    inspector.locator("[role=tab]", has_text="Timing").click()
    for text in ("Queue5 ms", "Prompt1.50 s", "Answer100 ms", "on average 1.5 requests"):
        expect(inspector).to_contain_text(text)
    inspector.locator("[role=tab]", has_text="Request").click()
    bodies = inspector.locator("pre")
    assert json.loads(bodies.nth(0).inner_text()) == fake.bodies[0]
    expect(bodies.nth(1)).to_contain_text(f"curl -N {fake.url}/v1/chat/completions")
    expect(bodies.nth(1)).to_contain_text("It'\\''s a question")
    expect(bodies.nth(2)).to_contain_text("stream=True")
    compile(bodies.nth(2).inner_text(), "request.py", "exec")
    page.click("#open-inspector")
    expect(inspector).to_be_hidden()


def test_an_empty_answer_says_how_long_it_was(page: Page, fake: FakeServer) -> None:
    fake.answers = [Answer([""])]
    answer_of(page, "Hi")
    expect(page.locator(".message.assistant .facts")).to_contain_text("1 token")
