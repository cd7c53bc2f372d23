"""Batches and rows of numbers as messages to ranks."""

import dataclasses
import socket

import msgspec
import pytest
import torch

from caravan.scheduler.channel import encode_frame
from caravan.scheduler.rank_messages import (
    CopyBlock,
    RunBatch,
    RunOtherLogits,
    ToRank,
    batch_of,
    other_logits,
    receive,
    rows_of,
    run_batch,
)
from caravan.scheduler.ranked_model import first_row
from caravan.scheduler.sequence import ScheduledSequence, Sequence
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import engine_of


def sent(message: msgspec.Struct) -> msgspec.Struct:
    """Return what arrives at the other end of a socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(encode_frame(message))
        return msgspec.msgpack.decode(receive(theirs), type=ToRank)


@pytest.mark.parametrize("num_logits", [0, 1])
def test_a_batch_arrives_as_it_was(num_logits: int) -> None:
    sequences = [Sequence.of(make_request(index, [*range(5, 9 + index)])) for index in range(3)]
    for index, sequence in enumerate(sequences):
        sequence.block_table = [*range(index, index + 2)]
    plan = [ScheduledSequence(one, one.num_tokens - 1 + num_logits) for one in sequences]
    batch = engine_of("float32", max_model_len=64)._batch_builder.build(plan)
    assert len(batch.wanted_rows) == 3 * num_logits
    message = sent(run_batch(batch))
    assert isinstance(message, RunBatch)
    for name, tensor in dataclasses.asdict(batch_of(message, torch.device("cpu"))).items():
        expected = getattr(batch, name)
        if name == "row_slots":
            assert tensor is expected is None
            continue
        assert tensor.dtype == expected.dtype, name
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_arrive_bit_by_bit(dtype: torch.dtype) -> None:
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).to(dtype)[::2]
    message = sent(other_logits(rows))
    assert isinstance(message, RunOtherLogits)
    assert torch.equal(rows_of(message, rows), rows)


def test_rows_of_the_last_hidden_states_are_known_by_their_place() -> None:
    hidden = torch.arange(40.0).view(5, 8)
    assert [first_row(part, hidden) for part in (hidden, hidden[2:4], hidden[4:])] == [0, 2, 4]
    others = [hidden[[1, 3]], hidden.clone(), hidden[::2], hidden[:, :4], hidden.view(10, 4)]
    assert [first_row(part, hidden) for part in others] == [None] * 5


def test_a_connection_that_ends_in_the_middle_of_a_frame_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(encode_frame(CopyBlock(1, 2))[:-1])
        with pytest.raises(ConnectionResetError):
            receive(theirs)
