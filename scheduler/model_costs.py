"""ModelCosts: the memory that a model costs, read from the heads of its files."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from caravan.model.backend import Backend, choose_backend
from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.kv_cache import KVDtype, choose_kv_dtype
from caravan.model.loader import open_checkpoint
from caravan.model.share import Share
from caravan.scheduler.draft_loading import open_draft
from caravan.scheduler.rank_memory import rank_token_bytes


@dataclass(frozen=True, kw_only=True)
class ModelCosts:
    """A model without its weights: its backend, and bytes of its weights and of a token in the KV pool."""

    checkpoint: Checkpoint
    backend: Backend
    kv_dtype: torch.dtype
    rank_weight_bytes: list[int]  # of each rank, without those of the draft model
    draft: "ModelCosts | None" = None

    @property
    def num_ranks(self) -> int:
        """How many processes compute the model."""
        return len(self.rank_weight_bytes)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of all ranks, with those of the draft model."""
        return sum(self.rank_weight_bytes) + (self.draft.weight_bytes if self.draft is not None else 0)

    @property
    def rank_token_bytes(self) -> list[int]:
        """Bytes of a token in the KV pool of each rank, in that of the first with those of the draft model."""
        draft_bytes = self.draft.token_bytes if self.draft is not None else 0
        return rank_token_bytes(self.checkpoint.config, self.kv_dtype, self.num_ranks, draft_bytes)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in the KV pools of all ranks, with those of the draft model."""
        return sum(self.rank_token_bytes)


def model_costs(
    path: Path,
    draft_path: Path | None = None,
    adapter_path: Path | None = None,
    *,
    dtype: str,
    quantization: Literal["auto", "none", "native", "int8", "int4"],
    kv_cache_dtype: KVDtype,
    block_size: int,
    is_gpu: bool,
    num_ranks: int = 1,
) -> ModelCosts:
    """Return the costs of a model; raises ValueError or OSError for one that cannot be served."""
    checkpoint = open_checkpoint(path, adapter_path)
    Share(0, num_ranks).check(checkpoint.config)

    def costs(one: Checkpoint, draft: ModelCosts | None, num_ranks: int) -> ModelCosts:
        choose = functools.partial(
            choose_backend,
            one,
            dtype=dtype,
            quantization=quantization,
            block_size=block_size,
            is_gpu=is_gpu,
            is_plan=True,
        )
        backend, shares = choose(), Share(0, num_ranks).all()
        return ModelCosts(
            checkpoint=one,
            backend=backend,
            kv_dtype=choose_kv_dtype(kv_cache_dtype, backend.dtype),
            rank_weight_bytes=[choose(share=share).weight_bytes for share in shares]
            if num_ranks > 1
            else [backend.weight_bytes],
            draft=draft,
        )

    draft = None if draft_path is None else costs(open_draft(draft_path, checkpoint), None, 1)
    return costs(checkpoint, draft, num_ranks)
