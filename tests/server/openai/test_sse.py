"""Server-sent events: spliced ones are the bytes of encoded ones, and a write that waits too long is noticed."""

import asyncio
import json
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.openai.chat import ChatShape
from server.openai.chunks import ChunkShape, ChunkWriter
from server.openai.completions import CompletionShape
from server.openai.schemas import ChatRequest, CompletionRequest
from server.openai.sse import TextEvent, WriteWatch, event
from server.text_stream import TextPiece
from server.tools.call_format import HERMES
from tests.fakes import byte_tokenizer

HEAD = {"id": "cmpl-1", "created": 1, "model": 'a "quoted" \u2028 name'}


def payload(text: str) -> dict[str, Any]:
    return {**HEAD, "choices": [{"index": 0, "text": text, "logprobs": None}]}


@given(st.text())
@example('"quotes" and \\ and / and \x7f')
@example("\x00\x01\x1f\b\f\n\r\t\v\x1c\x1d\x1e")
@example("\x85\u2028\u2029 end lines for str.splitlines()")
@example("\ufffd\ufeff\u200d👩‍👩‍👧 \U0010ffff")
@example('","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
def test_a_spliced_event_is_the_encoded_one(text: str) -> None:
    spliced = TextEvent(payload).with_text(text)
    assert spliced == event(payload(text))
    assert len(spliced.decode().splitlines()) == 2  # the event and the blank line
    assert json.loads(spliced.removeprefix(b"data: ")) == payload(text)


def test_half_of_a_surrogate_pair_is_refused_either_way() -> None:
    spliced = TextEvent(payload)
    for write in (spliced.with_text, lambda text: event(payload(text))):
        with pytest.raises(UnicodeEncodeError):
            write("\ud83d")


SHAPES: list[ChunkShape] = [
    CompletionShape(CompletionRequest.model_validate({"model": "m", "prompt": "hi"}), byte_tokenizer()),
    ChatShape(
        ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
        byte_tokenizer(),
        HERMES,
    ),
]


@pytest.mark.parametrize("shape", SHAPES, ids=["completion", "chat"])
@given(texts=st.lists(st.tuples(st.integers(0, 2), st.text(max_size=3)), min_size=1))
def test_a_stream_of_chunks_is_that_of_chunks_encoded_one_by_one(
    shape: ChunkShape, texts: list[tuple[int, str]]
) -> None:
    pieces = [(index, TextPiece(text, [1], [], [], None, 0, 0.0, 0.0)) for index, text in texts]
    pieces += [(index, TextPiece("", [2], [], [], "stop", 0, 0.0, 0.0)) for index in range(3)]
    writer = ChunkWriter(shape, HEAD, first={"warnings": ["w"]}, has_only_text=True, has_token_ids=False)
    choices: list[dict[str, Any]] = []
    opened = set()
    for index, piece in pieces:
        if index not in opened and (opening := shape.opening(index)):
            choices.append(opening)
        opened.add(index)
        if piece.text or piece.finish_reason:
            share = shape.chunk(index, piece)
            assert share is not None
            choices.append(share)
    expected = [event({**HEAD, "choices": [choice]}) for choice in choices[1:]]
    expected.insert(0, event({**HEAD, "choices": choices[:1], "warnings": ["w"]}))
    assert b"".join(writer.events(index, piece) for index, piece in pieces) == b"".join(expected)


async def test_a_write_is_noticed_when_it_has_waited_for_too_long_and_not_before() -> None:
    stalled = asyncio.Event()
    with WriteWatch(0.1, stalled.set) as watch:
        for _ in range(4):  # longer than the limit in all, each for itself shorter
            watch.write_began_seconds = time.monotonic()
            await asyncio.sleep(0.04)
            watch.write_began_seconds = None
        await asyncio.sleep(0.15)  # no write at all
        assert not stalled.is_set()
        began = watch.write_began_seconds = time.monotonic()
        await asyncio.wait_for(stalled.wait(), 5)
        assert time.monotonic() - began >= 0.1


async def test_a_watch_that_was_left_notices_nothing() -> None:
    stalled = asyncio.Event()
    with WriteWatch(0.01, stalled.set) as watch:
        watch.write_began_seconds = time.monotonic()
    await asyncio.sleep(0.05)
    assert not stalled.is_set()
