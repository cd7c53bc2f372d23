"""The key of packed weights: the model's files, how they are packed, by which code and for which processor.

The blocks of a spill file depend on the same and more (scheduler/spill_key.py).
"""

import hashlib
import importlib.metadata
from pathlib import Path

import torch

from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.cpu.build import processor_features
from caravan.model.cpu.llama import CpuLlama
from caravan.model.llama import Llama
from caravan.model.weights_header import WeightsKey, file_identity

_SOURCES = Path(__file__).parent.parent
LIBRARIES = ("torch", "gguf", "numpy", "safetensors")  # which read, round and order weights


def weights_key(checkpoint: Checkpoint, model: Llama, dtype: torch.dtype) -> WeightsKey:
    """Return the key of a model's weights; raises OSError if its files cannot be examined.

    Only those of CpuLlama are packed; for others it names what they were read from and by.
    """
    return WeightsKey(
        files=[file_identity(path) for path in _files(checkpoint)],
        tensors=hashlib.sha256(described_tensors(checkpoint).encode()).hexdigest(),
        quantization=model.quantization if isinstance(model, CpuLlama) else "none",
        share=None if model.split is None else (model.split.share.rank, model.split.share.num_ranks),
        dtype=str(dtype).removeprefix("torch."),
        code=sources_hash(_SOURCES),
        libraries={name: importlib.metadata.version(name) for name in LIBRARIES},
        features=processor_features()
        | {"byte products of the kernels": isinstance(model, CpuLlama) and model.has_byte_products},
    )


def described_tensors(checkpoint: Checkpoint) -> str:
    """Return the architecture of a model, and the names, shapes and kinds of its tensors."""
    described = (
        checkpoint.format,
        checkpoint.config,
        checkpoint.is_interleaved,
        sorted(checkpoint.names.items()),
        sorted(checkpoint.shapes.items()),
        sorted(checkpoint.blocks.items()),
        sorted(checkpoint.grids.items()),
    )
    if checkpoint.merged is not None:
        return repr((*described, checkpoint.merged.described))
    return repr(described)


def _files(checkpoint: Checkpoint) -> list[Path]:
    """Return the files of a model: all in its folder, since any of them can say how to read the others.

    Those of a merged adapter follow.
    """
    merged = [] if checkpoint.merged is None else list(checkpoint.merged.files)
    if checkpoint.path.is_dir():
        return sorted(path for path in checkpoint.path.iterdir() if path.is_file()) + merged
    return list(checkpoint.files) + merged


def sources_hash(folder: Path) -> str:
    """Return a hash of all sources in a folder: readers, packers and kernels decide on the bytes together."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cpp", ".h")):
        source = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(source)}\n".encode() + source)
    return digest.hexdigest()
