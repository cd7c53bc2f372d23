"""TextStream: the text of a choice does not depend on the batches of its tokens."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.model.tokenizer.detokenizer import Detokenizer
from caravan.scheduler.messages import FinishReason, SequenceOutput
from caravan.server.engine.output_queue import EngineDied, OutputQueue
from caravan.server.generation.errors import GenerationCancelled, GenerationFailed
from caravan.server.generation.stop_strings import StopStrings
from caravan.server.generation.text_stream import TextDelta, TextStream, join_deltas
from tests.support.fakes import EOS, byte_tokenizer, fake_logprobs


async def read(
    batches: list[list[int]],
    finish_reason: FinishReason | None,
    *,
    stop: list[str] | None = None,
    include_stop_string: bool = False,
    min_tokens: int = 0,
    has_logprobs: bool = True,
) -> tuple[list[TextDelta], list[int]]:
    """Return the deltas of a choice whose tokens come in `batches`, and which requests were aborted."""
    aborted: list[int] = []
    tokens = OutputQueue(7, aborted.append)
    stream = TextStream(
        tokens,
        Detokenizer(byte_tokenizer()),
        StopStrings(stop or []),
        stop_token_ids=[EOS],
        include_stop_string=include_stop_string,
        min_tokens=min_tokens,
    )
    deltas = []
    for index, batch in enumerate(batches):
        is_last = index == len(batches) - 1
        logprobs = [entry for token_id in batch for entry in fake_logprobs(token_id, 0 if has_logprobs else None)]
        output = SequenceOutput(
            request_id=7, token_ids=batch, logprobs=logprobs, finish_reason=finish_reason if is_last else None
        )
        tokens.put(output)
        delta = stream.take()
        assert delta is not None
        deltas.append(delta)
        if deltas[-1].finish_reason is not None:
            break
    assert stream.take() is None
    return deltas, aborted


def split(token_ids: list[int], cuts: list[int]) -> list[list[int]]:
    bounds = sorted({0, len(token_ids), *(cut for cut in cuts if cut < len(token_ids))})
    return [token_ids[start:end] for start, end in pairwise(bounds)]


@given(
    text=st.text("aé😀\u200d", min_size=1, max_size=12),
    num_bytes=st.integers(1, 40),
    stop=st.lists(st.text("aé😀", min_size=1, max_size=3), max_size=3),
    include_stop_string=st.booleans(),
    min_tokens=st.integers(0, 10),
    has_eos=st.booleans(),
    cuts=st.lists(st.integers(1, 40), max_size=8),
)
async def test_the_text_does_not_depend_on_the_batches(
    text: str,
    num_bytes: int,
    stop: list[str],
    include_stop_string: bool,
    min_tokens: int,
    has_eos: bool,
    cuts: list[int],
) -> None:
    token_ids = [*text.encode()[:num_bytes], *([EOS] if has_eos else [])]
    reason: FinishReason = "stop" if has_eos else "length"

    async def joined(batches: list[list[int]]) -> tuple[str, list[int], list[tuple[int, int]], str | None]:
        deltas, aborted = await read(
            batches, reason, stop=stop, include_stop_string=include_stop_string, min_tokens=min_tokens
        )
        whole = join_deltas(deltas)
        assert len(aborted) <= 1
        entries = [(entry.token_id, entry.text_offset) for entry in whole.entries]
        return whole.text, whole.token_ids, entries, whole.finish_reason

    one_by_one = await joined([[token_id] for token_id in token_ids])
    assert await joined(split(token_ids, cuts)) == one_by_one
    assert await joined([token_ids]) == one_by_one
    if not stop:
        assert one_by_one[0] == text.encode()[:num_bytes].decode(errors="replace")


@given(text=st.text("aé😀\u200d", min_size=1, max_size=12), cuts=st.lists(st.integers(1, 40), max_size=8))
async def test_the_text_is_the_same_with_and_without_log_probabilities(text: str, cuts: list[int]) -> None:
    batches = split([*text.encode(), EOS], cuts)
    with_logprobs, _ = await read(batches, "stop")
    without, _ = await read(batches, "stop", has_logprobs=False)
    assert without == [
        delta._replace(entries=[], received_at_seconds=mine.received_at_seconds)
        for delta, mine in zip(with_logprobs, without, strict=True)
    ]


async def test_a_stop_string_aborts_the_request_and_drops_the_rest() -> None:
    deltas, aborted = await read([list(b"one"), list(b" two"), list(b"three")], "length", stop=["w"])
    assert [delta.text for delta in deltas] == ["one", " t"]
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].token_ids == list(b" tw")
    assert aborted == [7]


async def test_a_stop_string_that_half_a_character_completes_at_the_end_counts() -> None:
    deltas, _ = await read([list("é".encode()[:1])], "length", stop=["\ufffd"])
    assert (deltas[-1].text, deltas[-1].finish_reason) == ("", "stop")


async def test_a_finished_choice_is_not_aborted() -> None:
    _, aborted = await read([[97, EOS]], "stop")
    assert aborted == []


@pytest.mark.parametrize(("finish_reason", "error"), [("error", GenerationFailed), ("abort", GenerationCancelled)])
async def test_an_abort_by_the_engine_is_an_error(finish_reason: FinishReason, error: type[Exception]) -> None:
    tokens = OutputQueue(1, lambda _: None)
    stream = TextStream(tokens, Detokenizer(byte_tokenizer()), StopStrings([]), stop_token_ids=[EOS])
    tokens.put(SequenceOutput(request_id=1, token_ids=[], finish_reason=finish_reason))
    with pytest.raises(error):
        stream.take()


async def test_output_before_a_crash_is_read_first() -> None:
    tokens = OutputQueue(1, lambda _: None)
    stream = TextStream(tokens, Detokenizer(byte_tokenizer()), StopStrings([]), stop_token_ids=[EOS])
    tokens.put(SequenceOutput(request_id=1, token_ids=[97]))
    tokens.fail(EngineDied())
    delta = stream.take()
    assert delta is not None
    assert delta.text == "a"
    with pytest.raises(EngineDied):
        stream.take()


async def test_the_last_token_of_a_complete_grammar_is_text() -> None:
    [*_, last], _ = await read([list(b'{"a": 1'), list(b"}")], "stop")
    assert (last.text, last.finish_reason, len(last.entries)) == ("}", "stop", 1)
