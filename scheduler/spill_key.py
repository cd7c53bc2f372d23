"""The key of a spill file: everything on which the bytes of cached blocks depend."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from caravan.model.attention.cpu import CpuAttention
from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.cpu.weights_key import sources_hash, weights_key
from caravan.model.llama import Llama
from caravan.model.spill_header import SpillKey

_SOURCES = Path(__file__).parent
_VARIABLES = ("ATEN_", "DNNL_", "MKL_", "ONEDNN_")  # beginnings of their names

logger = logging.getLogger(__name__)


def unchanged_spill_key(
    opened_ns: int,
    checkpoint: Checkpoint,
    model: Llama,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    block_size: int,
    max_model_len: int,
    environ: Mapping[str, str] = os.environ,
) -> SpillKey | None:
    """Return the key of the blocks that a model computes.

    None, after a warning, if its files have changed since opened_ns, a time before they were read, or cannot be
    examined: nobody knows then which weights those are.
    """
    attention = model.paged_attention
    library = str(attention.kernels) if isinstance(attention, CpuAttention) else torch.backends.cpu.get_cpu_capability()
    try:
        weights = weights_key(checkpoint, model, dtype)
    except OSError as error:
        logger.warning("There is no spill file: %s.", error)
        return None
    if any(file.changed_ns >= opened_ns for file in weights.files):
        logger.warning("There is no spill file: %s changed while it was loaded.", checkpoint.path)
        return None
    return SpillKey(
        weights=weights,
        backend=f"{type(model).__name__}, {type(attention).__name__}, {library}",
        environment={name: value for name, value in sorted(environ.items()) if name.startswith(_VARIABLES)},
        kv_dtype=str(kv_dtype).removeprefix("torch."),
        block_size=block_size,
        max_model_len=max_model_len,
        scheduler=sources_hash(_SOURCES),
    )
