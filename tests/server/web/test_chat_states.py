"""What the chat shows while it waits and when something fails: each state of the server."""

import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.web.fake_server import Answer, FakeServer, says
from tests.server.web.open_page import answer_of, ask, give_key, open_page
from tests.support.browser_page import SLOW_BROWSER

pytestmark = SLOW_BROWSER


@pytest.fixture
def page(browser: Browser, fake: FakeServer) -> Iterator[Page]:
    with open_page(browser, fake) as page:
        expect(page.locator("#server-state")).to_have_text("Ready")
        yield page


def test_a_server_that_starts_gets_the_question_when_it_is_ready(browser: Browser, fake: FakeServer) -> None:
    fake.is_ready = False
    loading = Answer(status=503, error={"message": "The engine is not ready. Try again later."})
    fake.answers = [loading]
    with open_page(browser, fake) as page:
        expect(page.locator("#server-state")).to_have_text("The model is loading")
        ask(page, "Hi")
        expect(page.locator(".notice")).to_contain_text("Your question is sent when it is ready.")
        fake.is_ready = True
        expect(page.locator(".message.assistant .text")).to_have_text("Hello there.")
        expect(page.locator("#server-state")).to_have_text("Ready")


def test_a_key_is_asked_for_when_the_server_wants_one(browser: Browser, fake: FakeServer) -> None:
    fake.key = "a-secret-key"
    with open_page(browser, fake) as page:
        dialog = page.locator("dialog")
        expect(dialog).to_contain_text("This server needs an API key")
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("This key is not known to the server.")
        page.fill("#key", "ключ")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("No request can carry a key with such characters.")
        give_key(page, fake.key)
        assert answer_of(page, "Hi") == "Hello there."
        fake.key = "another-key"
        ask(page, "Again")
        expect(dialog).to_contain_text("This key is not known to the server.")
        page.fill("#key", fake.key)
        page.keyboard.press("Enter")
        expect(page.locator(".message.assistant .text").last).to_have_text("Hello there.")


def test_a_queued_request_shows_its_place_and_the_forecast(page: Page, fake: FakeServer) -> None:
    held = threading.Event()
    fake.answers = [says("At last.", hold=held)]
    fake.timeline = [
        {"at_ms": 0.0, "event": "arrived"},
        {"at_ms": 1.0, "event": "admitted", "predicted_wait_ms": 3600.0},
        {"at_ms": 1.0, "event": "queued", "behind": 2},
    ]
    ask(page, "one two three")
    expect(page.locator(".notice")).to_have_text("Queued: third in the queue, about 4 s")
    fake.timeline.append({"at_ms": 9.0, "event": "joined", "cached_tokens": 1})
    expect(page.locator(".notice")).to_have_text("Reading the prompt: 1 of 3 tokens")
    fake.timeline.append({"at_ms": 9.5, "event": "computed", "computed_tokens": 2})
    expect(page.locator(".notice")).to_have_text("Reading the prompt: 2 of 3 tokens")
    fake.is_ready = False
    expect(page.locator(".notice")).to_have_text("The engine is being replaced. Your answer goes on.")
    fake.is_ready = True
    fake.timeline.append({"at_ms": 20.0, "event": "engine replaced"})
    expect(page.locator(".notice")).to_have_text("The engine was replaced. Your answer goes on.")
    held.set()
    expect(page.locator(".message.assistant .text")).to_have_text("At last.")
    expect(page.locator(".notice")).to_have_count(0)


def test_a_busy_server_is_tried_again_after_a_count_down(page: Page, fake: FakeServer) -> None:
    busy = {"message": "The server is overloaded. Try again in 2 s."}
    fake.answers = [Answer(status=429, error=busy, headers={"retry-after": "2"})]
    ask(page, "Hi")
    expect(page.locator(".notice")).to_contain_text("The server is busy. Trying again in 2 s.")
    expect(page.locator(".notice")).to_contain_text("Trying again in 1 s.")
    expect(page.locator(".message.assistant .text")).to_have_text("Hello there.")
    assert len(fake.bodies) == 2


def test_a_server_that_shuts_down_says_so(page: Page, fake: FakeServer) -> None:
    fake.answers = [Answer(status=503, error={"message": "The server is shutting down. Try again later."})]
    ask(page, "Hi")
    expect(page.locator(".notice")).to_contain_text("The server is shutting down. Trying again in")
    page.keyboard.press("Escape")
    expect(page.locator(".notice")).to_contain_text("You stopped this answer before it began.")


def test_an_error_stands_in_the_message_and_the_question_is_not_sent_twice(page: Page, fake: FakeServer) -> None:
    fake.answers = [Answer(status=400, error={"message": "Something is wrong."}), says("Fine.")]
    answer_of(page, "First")
    expect(page.locator(".message.assistant .notice.error")).to_contain_text("Something is wrong.")
    answer_of(page, "Second")
    assert fake.bodies[-1]["messages"] == [{"role": "user", "content": "Second"}]
    expect(page.locator(".notice").first).to_contain_text("The question is not sent along with later ones.")


def test_a_failed_answer_can_be_tried_again(page: Page, fake: FakeServer) -> None:
    fake.answers = [Answer(status=500, error={"message": "Internal error."})]
    answer_of(page, "Hi")
    page.locator(".notice button", has_text="Try again").click()
    expect(page.locator(".message.assistant .text")).to_have_text("Hello there.")
    expect(page.locator(".message")).to_have_count(2)
    expect(page.locator(".branch")).to_have_count(0)


def test_an_error_within_an_answer_keeps_its_text(page: Page, fake: FakeServer) -> None:
    fake.answers = [says("The beginning", error={"message": "The engine stopped."}), says(" and the end.")]
    assert answer_of(page, "Hi") == "The beginning"
    expect(page.locator(".notice.error")).to_contain_text("The engine stopped.")
    page.locator(".notice button", has_text="Continue").click()
    expect(page.locator(".message.assistant .text")).to_have_text("The beginning and the end.")


def test_an_answer_goes_on_by_itself_after_its_connection_was_lost(page: Page, fake: FakeServer) -> None:
    fake.answers = [says("The beginning", is_cut=True), says(" and the end.")]
    ask(page, "Hi")
    expect(page.locator(".notice")).to_contain_text("No server answers. Trying again in 3 s.")
    expect(page.locator(".message.assistant .text")).to_have_text("The beginning and the end.")
    assert fake.bodies[-1]["messages"][-1] == {"role": "assistant", "content": "The beginning"}


def test_a_question_waits_for_a_server_that_is_gone(page: Page, fake: FakeServer) -> None:
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.route("**/readyz", lambda route: route.abort())
    ask(page, "Hi")
    expect(page.locator(".notice")).to_contain_text("No server answers. Trying again in")
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#server-state")).to_have_text("No server answers")
    page.unroute("**/readyz")
    page.unroute("**/v1/chat/completions")
    expect(page.locator(".message.assistant .text")).to_have_text("Hello there.")


def test_a_device_without_network_says_so(page: Page) -> None:
    page.context.set_offline(True)
    expect(page.locator("#server-state")).to_have_text("This device is offline")
    page.context.set_offline(False)
    expect(page.locator("#server-state")).to_have_text("Ready")


def test_a_silent_stream_ends_with_a_notice_and_goes_on_when_asked(browser: Browser, fake: FakeServer) -> None:
    held = threading.Event()
    fake.answers = [says("Half of", then=held), says(" an answer.")]
    with open_page(browser, fake, "/livez") as page:
        page.clock.install()
        page.goto(fake.url)
        ask(page, "Hi")
        answer = page.locator(".message.assistant")
        expect(answer.locator(".text")).to_have_text("Half of")
        page.clock.fast_forward(59_000)
        expect(answer).to_have_attribute("aria-busy", "true")
        page.clock.fast_forward(2_000)
        expect(answer.locator(".notice")).to_contain_text("The server sent nothing for 60 s.")
        expect(page.locator("#send")).to_have_text("Send")
        answer.get_by_role("button", name="Continue").click()
        expect(answer.locator(".text")).to_have_text("Half of an answer.")
        assert fake.bodies[-1]["continue_final_message"] is True
        held.set()


def test_a_full_storage_is_reported_and_the_conversation_goes_on(page: Page) -> None:
    page.evaluate(
        """() => { IDBObjectStore.prototype.put = () => {
            throw new DOMException("The quota is exceeded.", "QuotaExceededError");
        } }"""
    )
    assert answer_of(page, "Hi") == "Hello there."
    expect(page.locator("#banner .notice")).to_have_count(1)
    expect(page.locator("#banner")).to_contain_text("The browser's storage is full")
    assert answer_of(page, "Again") == "Hello there."


DENIED = """for (const name of ["localStorage", "sessionStorage", "indexedDB"])
    Object.defineProperty(window, name, { get() { throw new DOMException("Denied", "SecurityError"); } });"""


@pytest.mark.parametrize(
    "denial",
    [DENIED, "IDBFactory.prototype.open = () => { throw new DOMException('Denied', 'SecurityError') }"],
    ids=["all", "database"],
)
def test_a_browser_that_stores_nothing_can_chat(browser: Browser, fake: FakeServer, denial: str) -> None:
    fake.key = "a-secret-key"
    with open_page(browser, fake, "/livez") as page:
        page.add_init_script(denial)
        page.goto(f"{fake.url}/#chat/earlier")
        give_key(page, fake.key)
        expect(page.locator("#toasts")).to_contain_text("This conversation is not in this browser.")
        assert answer_of(page, "Good day") == "Hello there."
        page.click("#new-chat")
        assert answer_of(page, "Something else") == "Hello there."
        expect(page.locator("#banner .notice")).to_have_count(1)
        expect(page.locator("#banner")).to_contain_text("The browser denies storage: conversations are lost when")
        page.fill("#search", "something")
        expect(page.locator("#conversations a")).to_have_text(["Something else"])
        page.fill("#search", "")
        page.locator("#conversations a", has_text="Good day").click()
        expect(page.locator(".message.user .text")).to_have_text("Good day")
        page.locator("[aria-label='Delete: Good day']").click()
        page.locator(".toast button", has_text="Undo").click()
        expect(page.locator("#conversations a")).to_have_count(2)
        page.click("#open-settings")
        page.fill("#set-temperature", "0.5")
        page.locator("#settings button", has_text="Save").click()
        answer_of(page, "Again")
        assert fake.bodies[-1]["temperature"] == 0.5


def test_the_documents_are_shown_where_storage_is_denied(browser: Browser, fake: FakeServer) -> None:
    with open_page(browser, fake, "/livez") as page:
        page.add_init_script(DENIED)
        page.goto(f"{fake.url}/web/llama2-from-scratch.html")
        expect(page.locator("h1")).to_have_text("Llama 2 from scratch, as it runs here")
        page.goto(f"{fake.url}/web/docs.html")
        page.click("#theme")
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_a_view_that_cannot_be_loaded_says_so(page: Page) -> None:
    page.route("**/web/server/view.js", lambda route: route.abort())
    page.locator("#views [data-view=server]").click()
    expect(page.locator("#other-view")).to_contain_text("This view cannot be shown")
    page.locator("#views [data-view=chat]").click()
    expect(page.locator("#message")).to_be_visible()
    page.evaluate("location.hash = '#toString'")  # no view, though every object has it
    expect(page.locator("#message")).to_be_visible()
    expect(page.locator("body")).to_have_attribute("data-view", "chat")


def test_the_meter_moves_while_an_answer_is_written(browser: Browser, fake: FakeServer) -> None:
    hold, end = threading.Event(), threading.Event()
    fake.answers = [Answer(["word "] * 100, hold=hold, then=end)]
    with open_page(browser, fake) as page:
        ask(page, "one two three")
        expect(page.locator("#meter")).to_have_text("3 of 512 tokens")
        hold.set()
        expect(page.locator("#meter")).to_have_text("103 of 512 tokens")
        end.set()
        expect(page.locator(".message.assistant .facts")).to_be_visible()
