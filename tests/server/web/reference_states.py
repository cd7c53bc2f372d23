"""The states of the page that its reference screenshots show, without a model."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page, expect

from caravan.model.trace.recording import recording_llama
from caravan.model.trace.trace import trace
from caravan.server.learn.tracer import TracedModel, Tracer
from caravan.server.sandbox.worker_process import WorkerProcess
from tests.server.web.fake_server import Answer, FakeServer, fake_server, says
from tests.server.web.markdown_example import MARKDOWN
from tests.server.web.open_page import answer_of, ask
from tests.server.web.simulated_engine import simulated_engine
from tests.support import scripted_tracer
from tests.support.fakes import byte_tokenizer
from tests.support.tiny_llama import tiny_llama

QUESTION = "Show me a table, some code and a formula."
TRACED = "hi there"


@dataclass
class Servers:
    """A server for the chat, and one for the other views."""

    chat: FakeServer
    engine_url: str
    hold: threading.Event  # set at the end, for answers that do not end before


@contextmanager
def servers(folder: Path) -> Iterator[Servers]:
    """Run both; `folder` is for a file."""
    model = tiny_llama(make_model=recording_llama, vocab_size=byte_tokenizer().vocab_size)
    answer = folder / "answer.json"
    answer.write_text(json.dumps(trace(model, byte_tokenizer().encode(TRACED), 0, 0, 7)))
    tracer = Tracer(start=lambda: WorkerProcess(scripted_tracer.__file__, 10, 2**30, niceness=0))
    tracer.models["simulated"] = TracedModel(answer, 512)
    hold = threading.Event()
    try:
        with fake_server() as chat, simulated_engine(num_blocks=2000, tracer=tracer) as (url, _, _):
            try:
                yield Servers(chat, url, hold)
            finally:
                hold.set()
    finally:
        tracer.close()


def first_visit(page: Page, servers: Servers) -> None:
    _chat(page, servers)


def answered(page: Page, servers: Servers) -> None:
    _chat(page, servers)
    servers.chat.answers = [says(MARKDOWN)]
    answer_of(page, QUESTION)
    expect(page.locator("math")).to_be_visible()


def answering(page: Page, servers: Servers) -> None:
    _chat(page, servers)
    servers.chat.answers = [Answer(["word "] * 120, then=servers.hold)]
    ask(page, "Write at length.")
    expect(page.locator(".message.assistant .text")).to_contain_text("word word")
    expect(page.locator("#meter")).to_contain_text("of 512 tokens")


def refused(page: Page, servers: Servers) -> None:
    _chat(page, servers)
    answer_of(page, "Hello")
    servers.chat.answers = [Answer(status=429, error={"message": "Busy."}, headers={"retry-after": "60"})]
    ask(page, "Are you there?")
    expect(page.locator(".notice")).to_contain_text("Trying again in")


def tokens(page: Page, servers: Servers) -> None:
    _chat(page, servers)
    servers.chat.answers = [says("The capital of France is Paris.")]
    answer_of(page, "What is the capital of France?")
    page.locator(".message.assistant button", has_text="Tokens").click()
    page.locator(".token", has_text="Paris").click()


def engine(page: Page, servers: Servers) -> None:
    page.goto(f"{servers.engine_url}/#engine")
    expect(page.locator(".requests tbody tr").nth(5)).to_be_visible()
    expect(page.locator(".events li").nth(20)).to_be_attached()
    page.locator(".scrubber .pause").click()


def learn(page: Page, servers: Servers) -> None:
    page.goto(f"{servers.engine_url}/#learn")
    page.fill("#learn-text", TRACED)
    page.locator(".learn-form button").click()
    page.locator(".guess button").first.click()
    expect(page.locator(".code-part mark").first).to_be_visible()


def server(page: Page, servers: Servers) -> None:
    page.goto(f"{servers.engine_url}/#server")
    expect(page.locator(".server-view")).to_contain_text("Model simulated")


def reference(page: Page, servers: Servers) -> None:
    page.goto(f"{servers.engine_url}/docs")
    page.locator("summary", has_text="/v1/chat/completions").click()
    expect(page.locator(".route td").first).to_be_visible()
    page.locator("summary", has_text="/v1/chat/completions").scroll_into_view_if_needed()


def _chat(page: Page, servers: Servers) -> None:
    page.goto(servers.chat.url)
    expect(page.locator("#model-chip")).to_contain_text("tiny")


STATES: list[Callable[[Page, Servers], None]] = [
    first_visit,
    answered,
    answering,
    refused,
    tokens,
    engine,
    learn,
    server,
    reference,
]
