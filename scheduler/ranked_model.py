"""RankedModel and RankedKVCache: the parts of a model and of its KV pool in the first of several ranks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from typing_extensions import override

from caravan.model.config import ModelConfig
from caravan.model.exchange import ExchangeFailed
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_cache import KVCache
from caravan.model.llama import Llama
from caravan.scheduler.rank_messages import ClearBlock, CopyBlock, MakePool, RunLogits, other_logits, run_batch
from caravan.scheduler.ranks import Ranks
from caravan.scheduler.tracebacks import traceback_text


class RankedModel:
    """The part of a model in this process. Each call is sent to the other ranks before it runs here.

    All ranks compute the same calls in the same order, and exchange their parts meanwhile. So a call that fails on one
    of them leaves them out of step, and no later one can be run: it raises ExchangeFailed.
    """

    def __init__(self, model: Llama, ranks: Ranks) -> None:
        self.part = model
        self.ranks = ranks
        self._hidden = torch.empty(0, 0)  # [S, hidden_size] of the last batch, which the other ranks have, too

    @property
    def config(self) -> ModelConfig:
        """The configuration of this part."""
        return self.part.config

    @property
    def norm(self) -> nn.Module:
        """The last norm, which every rank has whole."""
        return self.part.norm

    def check_block_size(self, block_size: int) -> None:
        """See Llama.check_block_size."""
        self.part.check_block_size(block_size)

    def hidden_states(self, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """See Llama.hidden_states."""
        self.ranks.send(run_batch(batch))
        with self._in_step():
            self._hidden = self.part.hidden_states(batch, kv_cache)
        return self._hidden

    def logits(self, x: Tensor) -> Tensor:
        """See Llama.logits. Rows of the last hidden states are sent as their numbers, other rows as what they hold."""
        if not len(x):
            return x.new_empty(0, self.config.vocab_size, dtype=torch.float32)
        first = first_row(x, self._hidden)
        self.ranks.send(other_logits(x) if first is None else RunLogits(first, len(x)))
        with self._in_step():
            return self.part.logits(x)

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        try:
            yield
        except ExchangeFailed as error:
            self.ranks.fail(str(error))
            raise
        except Exception as error:
            self.ranks.fail(f"The first rank failed.\n{traceback_text(error)}")
            raise ExchangeFailed("The first rank failed, so the ranks are out of step.") from error


class RankedKVCache(KVCache):
    """The part of the KV pool in this process. What is done to its blocks is done on the other ranks, too."""

    def __init__(
        self,
        ranks: Ranks,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`config` is that of this part; `Ranks.pool_bytes` tells when the other ranks have allocated theirs."""
        self._ranks, self._block_size = ranks, block_size
        super().__init__(config, num_blocks, block_size, dtype, device)

    @override
    def allocate(self, num_blocks: int) -> None:
        self._ranks.send(MakePool(num_blocks, self._block_size))
        super().allocate(num_blocks)

    @override
    def release(self) -> None:
        self._ranks.send(MakePool(0, self._block_size))
        super().release()

    @override
    def copy_block(self, source: int, target: int) -> None:
        self._ranks.send(CopyBlock(source, target))
        super().copy_block(source, target)

    @override
    def clear_block(self, block: int) -> None:
        self._ranks.send(ClearBlock(block))
        super().clear_block(block)


def first_row(x: Tensor, hidden: Tensor) -> int | None:
    """Return which row of the hidden states x begins with; None if it is no view of their rows."""
    is_same_memory = x.untyped_storage().data_ptr() == hidden.untyped_storage().data_ptr()
    is_view = is_same_memory and (x.shape[1], x.stride()) == (hidden.shape[1], hidden.stride())
    first, rest = divmod(int(x.storage_offset()) - int(hidden.storage_offset()), hidden.stride(0) or 1)
    return first if is_view and not rest and 0 <= first <= len(hidden) - len(x) else None
