"""Server-sent events: one line each, whatever the text; a write that waits too long is noticed."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from caravan.server.generation.generation import Generation
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.generation.text_stream import TextDelta
from caravan.server.http.sse import KEEP_ALIVE, EventStream, WriteTimeout, event
from caravan.server.openai.chat import ChatShape
from caravan.server.openai.completions import CompletionShape
from caravan.server.openai.formatter import Formatter
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.completions import CompletionRequest
from caravan.server.openai.tool_calls.call_format import HERMES
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Api, open_api
from tests.server.openai.asgi import AsgiRequest
from tests.support.fakes import byte_tokenizer
from tests.support.waiting import until

HEAD = {"id": "cmpl-1", "created": 1, "model": 'a "quoted" \u2028 name'}


def payload(text: str) -> dict[str, Any]:
    return {**HEAD, "choices": [{"index": 0, "text": text, "logprobs": None}]}


@given(st.text())
@example('"quotes" and \\ and / and \x7f')
@example("\x00\x01\x1f\b\f\n\r\t\v\x1c\x1d\x1e")
@example("\x85\u2028\u2029 end lines for str.splitlines()")
@example("\ufffd\ufeff\u200d👩‍👩‍👧 \U0010ffff")
@example('","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
def test_an_event_is_one_line_whatever_its_text(text: str) -> None:
    written = event(payload(text))
    assert len(written.decode().splitlines()) == 2  # the event and the blank line
    assert json.loads(written.removeprefix(b"data: ")) == payload(text)


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        event(payload("\ud83d"))


COMPLETION = CompletionRequest.model_validate({"model": "m", "prompt": "hi"})
CHAT_REQUEST = ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "hi"}]})


@pytest.mark.parametrize("kind", ["completion", "chat"])
@given(texts=st.lists(st.tuples(st.integers(0, 2), st.text(max_size=3)), min_size=1))
def test_a_stream_has_each_text_once_the_role_first_and_the_warnings_in_its_first_chunk(
    kind: str, texts: list[tuple[int, str]]
) -> None:
    formatter = (
        Formatter(COMPLETION, [[1]], CompletionShape(COMPLETION, byte_tokenizer()), ["w"])
        if kind == "completion"
        else Formatter(CHAT_REQUEST, [[1]], ChatShape(CHAT_REQUEST, byte_tokenizer(), HERMES), ["w"])
    )
    deltas = [(index, TextDelta(text, [1], [], [], None, 0, 0.0, 0.0)) for index, text in texts]
    deltas += [(index, TextDelta("", [2], [], [], "stop", 0, 0.0, 0.0)) for index in range(3)]
    nobody = cast(Generation, SimpleNamespace(fingerprint=None))
    body = b"".join(formatter.delta(index, delta, nobody) for index, delta in deltas).decode()
    chunks = [json.loads(line.removeprefix("data: ")) for line in body.split("\n\n") if line]
    assert [chunk.get("warnings") for chunk in chunks] == [["w"]] + [None] * (len(chunks) - 1)
    for number in range(3):
        choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == number]
        wanted = [text for index, text in texts if index == number and text] + [""]
        if kind == "chat":
            assert choices.pop(0)["delta"] == {"role": "assistant", "content": ""}
        assert [one["delta"]["content"] if kind == "chat" else one["text"] for one in choices] == wanted
        assert [one["finish_reason"] for one in choices] == [None] * (len(wanted) - 1) + ["stop"]


async def test_a_write_is_noticed_when_it_has_waited_for_too_long_and_not_before() -> None:
    stalled = asyncio.Event()
    with WriteTimeout(0.1, stalled.set) as watch:
        for _ in range(4):  # longer than the limit in all, each for itself shorter
            watch.write_began_seconds = time.monotonic()
            await asyncio.sleep(0.04)
            watch.write_began_seconds = None
        await asyncio.sleep(0.15)  # no write at all
        assert not stalled.is_set()
        began = watch.write_began_seconds = time.monotonic()
        await asyncio.wait_for(stalled.wait(), 60)
        assert time.monotonic() - began >= 0.1


async def test_a_write_watch_reports_nothing_after_its_end() -> None:
    stalled = asyncio.Event()
    with WriteTimeout(0.01, stalled.set) as watch:
        watch.write_began_seconds = time.monotonic()
    await asyncio.sleep(0.05)
    assert not stalled.is_set()


class Client:
    """Takes what a stream sends; while it does not read, a write waits."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.is_ended = False
        self.reads = asyncio.Event()
        self.reads.set()

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        assert not self.is_ended, "nothing may follow the end"
        if message["type"] == "http.response.body":
            self.sent.append(message["body"])
            self.is_ended = not message["more_body"]

    async def receive(self) -> Any:
        await asyncio.Event().wait()


async def streamed(client: Client, pauses: list[float], *, keep_alive_seconds: float = 0.05) -> None:
    """Send an event after each pause."""

    async def events() -> AsyncGenerator[bytes, None]:
        for pause in pauses:
            await asyncio.sleep(pause)
            yield b"data: {}\n\n"

    stream = EventStream(events(), write_timeout_seconds=5, keep_alive_seconds=keep_alive_seconds, on_end=lambda: None)
    await stream({"type": "http"}, client.receive, client.send)


async def test_a_silent_stream_sends_comments_and_a_busy_one_does_not() -> None:
    client = Client()
    await streamed(client, [0.28, 0.01, 0.01, 0.13])
    assert client.is_ended
    kinds = [body for body in client.sent if body]
    assert set(kinds) == {KEEP_ALIVE, b"data: {}\n\n"}
    first = kinds.index(b"data: {}\n\n")
    assert 3 <= first <= 5
    assert kinds[first + 1 : first + 3] == [b"data: {}\n\n"] * 2
    assert 1 <= kinds[first + 3 :].count(KEEP_ALIVE) <= 2
    client = Client()
    await streamed(client, [0.0] * 50, keep_alive_seconds=0.5)
    assert KEEP_ALIVE not in client.sent


async def test_no_comment_joins_a_write_that_waits_for_its_client() -> None:
    client = Client()
    streaming = asyncio.create_task(streamed(client, [0.0, 0.0]))
    client.reads.clear()
    await asyncio.sleep(0.2)
    client.reads.set()
    await streaming
    assert client.sent == [b"data: {}\n\n"] * 2 + [b""]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_stream_that_waits_begins_before_its_first_token(path: str, fails: bool, chat_ml: ChatTemplate) -> None:
    limits = RequestLimits(keep_alive_seconds=0.05)
    async with open_api(chat_template=chat_ml, limits=limits) as api:
        api.engine.released.clear()
        asked: dict[str, dict[str, Any]] = {
            "/v1/completions": {"prompt": "hi"},
            "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
            "/v1/responses": {"input": "hi"},
        }
        request = AsgiRequest(api.app, path, {"model": "fake", "stream": True} | asked[path])
        await until(lambda: KEEP_ALIVE.decode() in request.body)
        assert request.status == 200
        assert "delta" not in request.body
        assert "text" not in request.body or path == "/v1/responses"
        api.engine.fails_after = 0 if fails else None
        api.engine.released.set()
        await request.end()
        assert ("internal_error" in request.body) == fails
        last = "response.failed" if fails else "response.completed"
        assert last in request.body if path == "/v1/responses" else request.body.endswith("data: [DONE]\n\n")


async def test_an_error_before_the_first_event_is_a_status(api: Api) -> None:
    api.engine.fails_after = 0
    response = await api.http.post("/v1/completions", json={"model": "fake", "prompt": "hi", "stream": True})
    assert response.status_code == 500
