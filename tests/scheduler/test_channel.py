"""Frames: what goes in comes out, however the socket cuts it."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.scheduler.channel import LENGTH, MAX_FRAME_BYTES, FrameSplitter, encode_frame
from caravan.scheduler.messages import FromEngine, SequenceOutput, StepOutput, StepStats, TokenLogprobs


def step(index: int) -> StepOutput:
    logprobs = TokenLogprobs(logprob=-0.5, top_token_ids=[1, 2], top_logprobs=[-0.5, -1.5])
    output = SequenceOutput(request_id=index, token_ids=[7, 8], logprobs=[logprobs, logprobs], finish_reason="length")
    return StepOutput(outputs=[output] * index, stats=StepStats(step=index, num_running=index, step_seconds=0.25))


@given(num_frames=st.integers(1, 4), cuts=st.lists(st.integers(0, 600), max_size=12))
def test_frames_come_whole_and_in_order_however_they_are_cut(num_frames: int, cuts: list[int]) -> None:
    steps = [step(index) for index in range(num_frames)]
    sent = b"".join(map(encode_frame, steps))
    bounds = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    splitter = FrameSplitter()
    bodies = [body for start, end in pairwise(bounds) for body in splitter.split(sent[start:end])]
    assert [msgspec.msgpack.decode(body, type=FromEngine) for body in bodies] == steps


@pytest.mark.parametrize("length", [0, MAX_FRAME_BYTES + 1])
def test_an_impossible_length_is_an_error(length: int) -> None:
    with pytest.raises(ValueError, match="cannot have"):
        list(FrameSplitter().split(LENGTH.pack(length) + b"x"))
