"""Merge an adapter into the weights of a checkpoint while they are read.

W' = W + scale * B A (LoRA, arXiv:2106.09685, section 4.1), in float32, rounded once to the type that is asked for.
"""

import functools
from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from caravan.model.checkpoint import ALL_ROWS, BrokenCheckpoint
from caravan.model.checkpoint.adapter_sites import adapter_sites
from caravan.model.checkpoint.checkpoint import Checkpoint, MergedAdapter
from caravan.model.checkpoint.peft import Adapter
from caravan.model.checkpoint.row_order import interleaved
from caravan.model.linear import row_invariant_linear

_MAX_CACHED = 64  # modules whose matrices are kept: a weight is read in many pieces


def merged(checkpoint: Checkpoint, adapter: Adapter) -> Checkpoint:
    """Return the checkpoint with weights into which an adapter is merged.

    A matrix that the files have in few bits is widened; it is no longer in blocks or on a grid.
    Raises BrokenCheckpoint or UnsupportedModel if the adapter is not one of this model.
    """
    sites = adapter_sites(checkpoint, adapter)
    modules = {site.source: (module, site.num_interleaved_heads) for module, site in sites.items()}
    factors = functools.lru_cache(_MAX_CACHED)(adapter.factors)

    def read(name: str, out: Tensor, rows: slice = ALL_ROWS) -> None:
        if name not in modules:
            checkpoint.read(name, out, rows)
            return
        module, num_interleaved_heads = modules[name]
        a, b = factors(module)
        b = interleaved(b, num_interleaved_heads) if num_interleaved_heads else b
        # The bits of a row must not depend on how many rows are read at once.
        change = row_invariant_linear(b[rows].contiguous(), a.T.contiguous()) * adapter.config.scale_of(module)
        if not change.isfinite().all():
            raise BrokenCheckpoint(f"{adapter.path}: {ascii(module)[1:-1]} is too large to be merged.")
        wide = torch.empty(out.shape, dtype=torch.float32)
        checkpoint.read(name, wide, rows)
        out.copy_(wide.add_(change))

    return replace(
        checkpoint,
        read=read,
        grids={name: bits for name, bits in checkpoint.grids.items() if name not in modules},
        blocks={name: kind for name, kind in checkpoint.blocks.items() if name not in modules},
        merged=MergedAdapter(
            files=adapter.files, described=adapter.described(), text=_text(checkpoint, adapter, [*modules])
        ),
    )


def _text(checkpoint: Checkpoint, adapter: Adapter, tensors: list[str]) -> str:
    """Return what is merged, in words."""
    kinds = Counter(module.rpartition(".")[2] for module in adapter.shapes)
    ranks = sorted({rank for _, _, rank in adapter.shapes.values()})
    rank = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    text = f"{adapter.path.name}, rank {rank}, merged into {len(tensors)} matrices ({', '.join(sorted(kinds))})"
    num_widened = sum(name in checkpoint.blocks for name in tensors)
    return f"{text}, {num_widened} of them widened from blocks" if num_widened else text
