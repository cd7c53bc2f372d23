"""The messages between the first rank of a model and the others, as frames on a socket (scheduler/channel.py)."""

import socket
from typing import Literal

import msgspec
import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from caravan.model.forward_batch import ForwardBatch
from caravan.scheduler.channel import LENGTH, frame_length
from caravan.scheduler.messages import StartEngine
from caravan.scheduler.rank_cores import RankCores
from caravan.scheduler.rank_socket import read_exactly

_INT32 = frozenset({"query_start_loc", "seq_lens", "block_tables"})  # fields of a ForwardBatch; others are int64
# A model of several ranks has no adapters for requests.
_TENSORS = tuple(name for name in ForwardBatch.__dataclass_fields__ if name not in ("block_tables", "row_slots"))


class StartRank(msgspec.Struct, frozen=True, kw_only=True, tag=True, array_like=True):
    """The first message to a rank: what it loads, and where it computes."""

    start: StartEngine
    rank: int
    num_ranks: int
    memory: int | None  # descriptor of the exchange's memory, inherited; None: ranks exchange through a group
    cores: RankCores


class JoinRank(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The first message of a rank on another host: what the bits of its outputs depend on (scheduler/rank_facts.py)."""

    facts: dict[str, str]


class JoinRefused(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The rank cannot compute a part of the model; the connection is closed after this message."""

    reason: str


class CallStore(msgspec.Struct, frozen=True, kw_only=True, tag=True, array_like=True):
    """A call of the store by which the ranks of a group find each other (scheduler/rank_store.py)."""

    operation: Literal["set", "get", "add", "check"]
    key: str
    value: bytes = b""  # to set
    amount: int = 0  # to add


class StoreAnswer(msgspec.Struct, frozen=True, kw_only=True, tag=True, array_like=True):
    """The result of a call of the store."""

    value: bytes = b""
    number: int = 0


class GroupJoined(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The rank has found all others, and calls the store no more."""


class MakePool(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Release the memory of the KV pool; then allocate this number of blocks, if it is not 0.

    The answer to the first such message is PoolReady.
    """

    num_blocks: int
    block_size: int


class RunBatch(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Compute the hidden states of a batch, and keep them until the next one."""

    token_ids: bytearray
    positions: bytearray
    slot_mapping: bytearray
    query_start_loc: bytearray
    seq_lens: bytearray
    wanted_rows: bytearray
    block_tables: bytearray
    num_sequences: int  # rows of the block tables


class RunLogits(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Compute the logits of rows of the hidden states that were kept."""

    first_row: int
    num_rows: int


class RunOtherLogits(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Compute the logits of other rows [num_rows, hidden_size], in the dtype of the hidden states."""

    rows: bytearray
    num_rows: int


class CopyBlock(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Copy the keys and values of a block."""

    source: int
    target: int


class ClearBlock(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Overwrite the keys and values of a block with zeros."""

    block: int


class RankLoaded(msgspec.Struct, frozen=True, kw_only=True, tag=True, array_like=True):
    """The part of the weights is loaded."""

    weight_bytes: int
    mapped_bytes: int  # of these, in the page cache
    free_bytes: int | None = None  # of the memory of its host, if that is another one


class PoolReady(msgspec.Struct, frozen=True, kw_only=True, tag=True, array_like=True):
    """The KV pool is allocated."""

    num_bytes: int


class RankFailed(msgspec.Struct, frozen=True, kw_only=True, tag=True, array_like=True):
    """The rank has failed, and ends after this message."""

    reason: str
    traceback: str = ""  # for the log; empty: the reason says enough


ToRank = StartRank | MakePool | RunBatch | RunLogits | RunOtherLogits | CopyBlock | ClearBlock
FromRank = RankLoaded | PoolReady | RankFailed
ToJoining = StartRank | JoinRefused
FromJoining = CallStore | GroupJoined | RankFailed


def run_batch(batch: ForwardBatch) -> RunBatch:
    """Return the message for a batch."""
    assert batch.row_slots is None
    numbers = {name: bytearray(getattr(batch, name).cpu().numpy().tobytes()) for name in (*_TENSORS, "block_tables")}
    return RunBatch(**numbers, num_sequences=batch.block_tables.shape[0])


def batch_of(message: RunBatch, device: torch.device) -> ForwardBatch:
    """Return the batch of a message."""
    tensors = {name: _tensor(getattr(message, name), _dtype(name)).to(device) for name in _TENSORS}
    block_tables = _tensor(message.block_tables, np.int32).view(message.num_sequences, -1).to(device)
    return ForwardBatch(**tensors, block_tables=block_tables)


def other_logits(rows: Tensor) -> RunOtherLogits:
    """Return the message for rows [num_rows, hidden_size]."""
    return RunOtherLogits(bytearray(rows.contiguous().view(torch.uint8).cpu().numpy().tobytes()), len(rows))


def rows_of(message: RunOtherLogits, like: Tensor) -> Tensor:
    """Return the rows of a message, in the dtype and on the device of another tensor."""
    return _tensor(message.rows, np.uint8).view(message.num_rows, -1).view(like.dtype).to(like.device)


def receive(connection: socket.socket) -> bytearray:
    """Return the body of the next frame; raises ConnectionResetError if the other end has closed."""
    return read_exactly(connection, frame_length(bytes(read_exactly(connection, LENGTH.size))))


def _dtype(name: str) -> DTypeLike:
    return np.int32 if name in _INT32 else np.int64


def _tensor(numbers: bytearray, dtype: DTypeLike) -> Tensor:
    return torch.from_numpy(np.frombuffer(numbers, dtype))
