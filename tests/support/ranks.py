"""Ranks as threads of one process: each computes its share of a model, and they exchange through shared memory."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from caravan.model.blocks import StoredRows, WeightPart
from caravan.model.checkpoint.checkpoint import Checkpoint, Weight, read_weights, weight_parts
from caravan.model.checkpoint.unread_rows import UnreadRows
from caravan.model.config import ModelConfig
from caravan.model.cpu.build import load_kernels
from caravan.model.cpu.kernels import Kernels
from caravan.model.exchange import Exchange, ExchangeFailed, SharedMemoryExchange, new_memory
from caravan.model.kv_cache import KVCache
from caravan.model.llama import Llama
from caravan.model.loader import load_model, plain_llama
from caravan.model.quantization import GroupedWeight, dequantize
from caravan.model.share import Share
from caravan.scheduler.batch import BatchBuilder, Span
from caravan.scheduler.sequence import Sequence
from tests.scheduler.requests import make_request
from tests.support.tiny_llama import kv_dtype_of

BLOCK_SIZE = 16
CPU = torch.device("cpu")
FIRST = torch.randint(0, 270, (70,), generator=torch.Generator().manual_seed(1)).tolist()
SECOND = torch.randint(0, 270, (37,), generator=torch.Generator().manual_seed(2)).tolist()

T = TypeVar("T")
MakeModel = Callable[[ModelConfig], Llama]


def on_ranks(num_ranks: int, run: Callable[[Share, Exchange], T], kernels: Kernels | None = None) -> list[T]:
    """Return run(share, exchange) of each rank; they run at the same time."""
    memory = new_memory()
    exchanges = [SharedMemoryExchange(rank, num_ranks, memory, 60, kernels) for rank in range(num_ranks)]
    os.close(memory)

    def task(exchange: SharedMemoryExchange) -> T:
        try:
            return run(Share(exchange.rank, num_ranks), exchange)
        finally:
            exchange.close()  # or the others would wait for a rank that has failed

    with ThreadPoolExecutor(num_ranks) as pool:
        futures: list[Future[T]] = [pool.submit(task, exchange) for exchange in exchanges]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, ExchangeFailed)):  # one that others fail after
        raise error
    return [future.result() for future in futures]


def step_logits(model: Llama, share: Share, kv_dtype: torch.dtype | None = None) -> Tensor:
    """Return the logits of two texts, [rows, vocab_size], in chunks, without some rows, and token by token."""
    num_blocks = 2 * -(-len(FIRST) // BLOCK_SIZE)
    dtype = kv_dtype or kv_dtype_of(model)
    cache = KVCache(share.cache_config(model.config), num_blocks, BLOCK_SIZE, dtype, CPU)
    first, second = Sequence.of(make_request(0, FIRST)), Sequence.of(make_request(1, SECOND))
    first.block_table, second.block_table = list(range(0, num_blocks, 2)), list(range(num_blocks - 1, 0, -2))
    builder = BatchBuilder(2, num_blocks, BLOCK_SIZE, CPU)
    steps = [
        ([Span(first, 0, FIRST[:41])], range(41)),
        ([Span(first, 41, FIRST[41:68]), Span(second, 0, SECOND[:35])], range(20, 62)),
        *(
            ([Span(first, 68 + i, FIRST[68 + i : 69 + i]), Span(second, 35 + i, SECOND[35 + i : 36 + i])], range(2))
            for i in range(2)
        ),
    ]
    return torch.cat([model(builder.build_spans(spans, wanted), cache) for spans, wanted in steps])


def split_logits(
    checkpoint: Checkpoint,
    num_ranks: int,
    dtype: torch.dtype = torch.float32,
    make_model: MakeModel = plain_llama,
    kernels: Kernels | None = None,
    kv_dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Return the logits on each rank, which loads and runs its share of a model; 1 rank needs no exchange."""
    if num_ranks == 1:
        return [step_logits(load_model(checkpoint, dtype, CPU, 128, make_model), Share(), kv_dtype)]

    def run(share: Share, exchange: Exchange) -> Tensor:
        model = load_model(checkpoint, dtype, CPU, 128, make_model, share=share, exchange=exchange)
        return step_logits(model, share, kv_dtype)

    return on_ranks(num_ranks, run, kernels)


def assert_equal_bits(
    checkpoint: Checkpoint,
    num_ranks: int,
    dtype: torch.dtype = torch.float32,
    make_model: MakeModel = plain_llama,
    kernels: Kernels | None = None,
    kv_dtype: torch.dtype | None = None,
) -> None:
    """Raise unless the logits of each rank are those of the model in one process, to the last bit."""
    (alone,) = split_logits(checkpoint, 1, dtype, make_model, kernels, kv_dtype)
    assert alone.isfinite().all()
    assert alone.std() > 0
    for logits in split_logits(checkpoint, num_ranks, dtype, make_model, kernels, kv_dtype):
        assert torch.equal(logits, alone)


def assert_ranks_read_the_whole(checkpoint: Checkpoint) -> None:
    """Raise unless each rank reads exactly its rows of each weight: widened, on grids, and in blocks."""
    names = {name for name, parts in weight_parts(checkpoint).items() if len(parts[0].shape) > 1}
    no_names: set[str] = set()
    for grouped, in_blocks in ((no_names, no_names), (names, no_names), (no_names, names)):
        read = read_weights(checkpoint, torch.float32, grouped, in_blocks)
        whole = {name: _widened(weight) for name, weight in read}
        for num_ranks in (2, 3):
            for share in Share(0, num_ranks).all():
                for by_rows in (False, True):
                    weights = read_weights(checkpoint, torch.float32, grouped, in_blocks, share=share, by_rows=by_rows)
                    widened = {name: _widened(weight) for name, weight in weights}
                    assert widened.keys() == whole.keys()
                    for name, weight in widened.items():
                        rows = _rows_of(name, share, checkpoint.config)
                        assert torch.equal(weight, whole[name][rows]), (name, share, by_rows)


def _rows_of(name: str, share: Share, config: ModelConfig) -> Tensor:
    """Return the rows of a weight that a rank has."""
    every = torch.arange(10**6)

    def outputs(num_outputs: int) -> Tensor:
        rows = share.outputs(num_outputs)
        return every[rows.start : rows.stop]

    def heads(some: range) -> Tensor:
        return every[some.start * config.head_dim : some.stop * config.head_dim]

    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    keys = heads(share.kv_heads(config)) + q_rows
    match name.split(".")[2:-1] or name.split(".")[:1]:
        case ["attention", "qkv"]:
            return torch.cat((heads(share.heads(config)), keys, keys + kv_rows))
        case ["feed_forward", "gate_up"]:
            inner = outputs(config.intermediate_size)
            return torch.cat((inner, inner + config.intermediate_size))
        case ["attention", "output"] | ["feed_forward", "down"]:
            return outputs(config.hidden_size)
        case ["output"]:
            return outputs(config.vocab_size)
        case ["embedding"]:
            return every[: config.vocab_size]
        case ["attention", _]:  # norms of queries and keys
            return every[: config.head_dim]
    return every[: config.hidden_size]


def _widened(weight: Weight | WeightPart) -> Tensor:
    match weight:
        case list():
            return torch.cat([_widened(part) for part in weight])
        case GroupedWeight():
            return dequantize(weight)
        case UnreadRows():
            ranges = [slice(first, min(first + 50, weight.shape[0])) for first in range(0, weight.shape[0], 50)]
            return torch.cat([_widened(rows) for _, rows in weight.pieces(ranges)])
        case StoredRows():
            return load_kernels().widen_rows(weight.stored, weight.order, weight.kind)
    return weight
