"""What the bits of a rank's outputs depend on: ranks on two hosts compute one model only if they agree on all of it."""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.cpu.build import KernelsUnavailable, load_kernels, processor_features
from caravan.model.cpu.weights_key import LIBRARIES, described_tensors, sources_hash
from caravan.scheduler.fingerprint import library_variables

_SOURCES = (Path(__file__).parent, Path(__file__).parent.parent / "model")
_WEIGHT_SUFFIXES = frozenset({".safetensors", ".pth", ".bin", ".gguf"})
_SAMPLE_BYTES = 4096  # read of each
_SAMPLE_DISTANCE_BYTES = 2**20  # of a file, and at its end
_NUM_DIGITS = 16  # of a hash
_NUM_SHOWN = 60  # characters of a value in a message


def rank_facts(checkpoint: Checkpoint, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what bits depend on beside the options of the engine, by names for people; raises OSError.

    Of the weights, the first page of each MiB is read. Times of files are left out: copies have others.
    """
    try:
        kernels = str(load_kernels())
    except KernelsUnavailable:
        kernels = "none"
    return {
        "Caravan": _digest(*(sources_hash(folder).encode() for folder in _SOURCES)),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "processor": json.dumps(processor_features(), sort_keys=True),
        "kernels": f"{kernels}, PyTorch's {torch.backends.cpu.get_cpu_capability()}",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "variables": json.dumps(library_variables(environ), sort_keys=True),
        "architecture": _digest(described_tensors(checkpoint).encode()),
        "weights": _digest(*(_samples(path) for path in _weight_files(checkpoint))),
    }


def difference(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Return a sentence about the first fact in which a rank differs from the first rank, empty if there is none."""
    for name in (*ours, *theirs):
        if ours.get(name) != theirs.get(name):
            there, here = (ascii(facts.get(name, "unknown"))[1:-1] for facts in (theirs, ours))
            shown = f": {there} instead of {here}" if max(len(there), len(here)) <= _NUM_SHOWN else ""
            return (
                f"The rank differs from the engine in `{name}`{shown}. Bits depend on it: use the same version, model "
                "and kind of processor on all hosts."
            )
    return ""


def _weight_files(checkpoint: Checkpoint) -> list[Path]:
    """Return the files of the weights, without what else is in their folder."""
    if checkpoint.files:
        return list(checkpoint.files)
    return sorted(path for path in checkpoint.path.iterdir() if path.suffix in _WEIGHT_SUFFIXES)


def _samples(path: Path) -> bytes:
    """Return the size of a file, the first page of each MiB and the last one, hashed."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        num_bytes = file.seek(0, os.SEEK_END)
        digest.update(num_bytes.to_bytes(8))
        for start in (*range(0, num_bytes, _SAMPLE_DISTANCE_BYTES), max(0, num_bytes - _SAMPLE_BYTES)):
            file.seek(start)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:_NUM_DIGITS]
