"""CUDA graphs without CUDA: the operations of a call are recorded, and repeated on the same tensors."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from caravan.model.forward_batch import ForwardBatch


class _Recorder(TorchDispatchMode):
    """Keeps each operation with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a graph cannot give a number to the host"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class FakeGraphs:
    """Records functions as a CUDA graph would: Python runs once, and then no number of Python's can change."""

    def __init__(self) -> None:
        self.num_captures = 0
        self.num_replays = 0

    def capture(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.num_captures += 1
        recorder = _Recorder()
        with recorder:
            output = function()

        def replay() -> Tensor:
            self.num_replays += 1
            for func, args, kwargs, result in recorder.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # neither a view nor in place
                        old.copy_(new)
            return output

        return replay


class MaskedAttention:
    """Attention that reads nothing on the host: every query sees its sequence's whole table, with a mask.

    The context is summed number by number, so the bits of a row do not depend on other rows.
    """

    block_multiple = 1

    def write(self, keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
        key_cache.flatten(0, 1).index_copy_(0, slot_mapping, keys)
        value_cache.flatten(0, 1).index_copy_(0, slot_mapping, values)

    def __call__(
        self,
        queries: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        batch: ForwardBatch,
        window: int | None = None,
        soft_cap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        assert soft_cap is None
        num_tokens, num_heads, head_dim = queries.shape
        tokens = torch.arange(num_tokens)
        ends = batch.query_start_loc[1:]
        owners = torch.bucketize(tokens, ends, right=True)
        positions = batch.seq_lens[owners] - ends[owners] + tokens  # [T]
        tables = batch.block_tables[owners].long()  # [T, width]
        group = num_heads // key_cache.shape[2]
        keys = key_cache[tables].flatten(1, 2).repeat_interleave(group, dim=2)  # [T, context, num_heads, head_dim]
        values = value_cache[tables].flatten(1, 2).repeat_interleave(group, dim=2)
        distance = positions.unsqueeze(1) - torch.arange(keys.shape[1])  # [T, context]
        is_hidden = (distance < 0) | (distance >= (window or math.inf))
        scores = (queries.unsqueeze(1) * keys).sum(-1) / math.sqrt(head_dim)  # [T, context, num_heads]
        weights = scores.masked_fill(is_hidden.unsqueeze(-1), -math.inf).softmax(dim=1)
        visible = values.masked_fill(is_hidden[:, :, None, None], 0)  # slots that nobody has written may hold NaN
        return (weights.unsqueeze(-1) * visible).sum(1)
