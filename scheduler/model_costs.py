"""ModelCosts: the memory that a model costs, read from the heads of its files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from caravan.model.backend import Backend, choose_backend
from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.kv_cache import KVDtype, choose_kv_dtype, kv_bytes_per_token
from caravan.model.loader import open_checkpoint
from caravan.scheduler.draft_loading import open_draft


@dataclass(frozen=True, kw_only=True)
class ModelCosts:
    """A model without its weights: its backend, and bytes of its weights and of a token in the KV pool."""

    checkpoint: Checkpoint
    backend: Backend
    kv_dtype: torch.dtype
    kv_bytes_per_token: int
    draft: "ModelCosts | None" = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, with those of the draft model."""
        return self.backend.weight_bytes + (self.draft.weight_bytes if self.draft is not None else 0)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in the KV pool, with those of the draft model."""
        return self.kv_bytes_per_token + (self.draft.token_bytes if self.draft is not None else 0)


def model_costs(
    path: Path,
    draft_path: Path | None = None,
    *,
    dtype: str,
    quantization: Literal["auto", "none", "native", "int8", "int4"],
    kv_cache_dtype: KVDtype,
    block_size: int,
    is_gpu: bool,
) -> ModelCosts:
    """Return the costs of a model; raises ValueError or OSError for one that cannot be served."""
    checkpoint = open_checkpoint(path)

    def costs(one: Checkpoint, draft: ModelCosts | None = None) -> ModelCosts:
        backend = choose_backend(
            one, dtype=dtype, quantization=quantization, block_size=block_size, is_gpu=is_gpu, is_plan=True
        )
        kv_dtype = choose_kv_dtype(kv_cache_dtype, backend.dtype)
        return ModelCosts(
            checkpoint=one,
            backend=backend,
            kv_dtype=kv_dtype,
            kv_bytes_per_token=kv_bytes_per_token(one.config, kv_dtype),
            draft=draft,
        )

    return costs(checkpoint, None if draft_path is None else costs(open_draft(draft_path, checkpoint)))
