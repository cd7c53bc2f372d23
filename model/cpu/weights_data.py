"""The data of a file of packed weights: how tensors of a model are laid out, written, mapped and verified."""

import contextlib
import errno
import hashlib
import itertools
import math
import mmap
import os
import time
import warnings
from collections.abc import Sequence
from typing import BinaryIO

import torch
from torch import Tensor

from caravan.model.cpu.arena import ALIGNMENT_BYTES
from caravan.model.cpu.kernels import WeightFormat
from caravan.model.cpu.linear import PackedLinear, PackedPart
from caravan.model.cpu.llama import CpuLlama
from caravan.model.cpu.packing import num_packed_bytes
from caravan.model.weights_header import StoredTensor, UnusableWeights, WeightsHeader

SAMPLE_BYTES = 4096  # at the start of each
SAMPLE_DISTANCE_BYTES = 2**20  # of a tensor, and at its end
_POPULATED_BYTES = 64 * 2**20  # at once
_WRITTEN_BYTES = 4 * 2**20  # at once
_SYNCED_BYTES = 256 * 2**20  # wait for the disk at most
_MAX_PAUSE_SECONDS = 0.1
_MADV_POPULATE_READ = 22  # Linux 5.14; madvise(2)


def stored_tensors(model: CpuLlama) -> tuple[list[StoredTensor], list[Tensor], int]:
    """Return what is stored of a model, the tensors as bytes, and their size in a file.

    These are all its parameters: the packed parts of each linear layer, then the others. An embedding table in the
    blocks of a GGUF file is not a parameter; it stays there.
    """
    parts = [(name, part) for name, linear in _linears(model).items() for part in linear.parts]
    others = _others(model)
    stored = [
        *(_described(name, part.packed, part.weight_format.value, part.num_outputs) for name, part in parts),
        *(_described(name, weight) for name, weight in others.items()),
    ]
    tensors = [part.packed for _, part in parts] + [_as_bytes(weight) for weight in others.values()]
    return stored, tensors, sum(map(_aligned_bytes, tensors))


def write_weights(file: BinaryIO, tensors: Sequence[Tensor]) -> None:
    """Write tensors of bytes, each at the next multiple of ALIGNMENT_BYTES; raises OSError.

    A piece is written in some milliseconds, and four times as long is waited before the next one, so that steps of the
    engine keep the bandwidth of memory and disk.
    """
    unsynced = 0
    for tensor in tensors:
        for piece in torch.split(tensor, _WRITTEN_BYTES):
            started = time.monotonic()
            file.write(piece.numpy().data)
            unsynced += piece.numel()
            max_pause_seconds = _MAX_PAUSE_SECONDS
            if unsynced > _SYNCED_BYTES:
                file.flush()
                os.fsync(file.fileno())
                unsynced, max_pause_seconds = 0, math.inf
            time.sleep(min(4 * (time.monotonic() - started), max_pause_seconds))
        file.write(bytes(_aligned_bytes(tensor) - tensor.numel()))


def map_weights(file: BinaryIO, start: int, header: WeightsHeader) -> list[Tensor]:
    """Return the tensors of an open file as bytes, mapped read-only; raises OSError, or UnusableWeights.

    All pages but those of experts are in memory and mapped when this returns: a page that is missing would delay a
    step. An expert is read when the first token is routed to it.
    """
    mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # kernels do not write weights
        data = torch.frombuffer(mapped, dtype=torch.uint8)[start:]
    tensors = []
    offset = 0
    for is_expert, group in itertools.groupby(header.tensors, lambda stored: is_of_expert(stored.name)):
        first = offset
        for stored in group:
            num_bytes = stored.num_bytes
            if offset + num_bytes > len(data):
                raise UnusableWeights(f"{stored.name} is not in it")
            tensors.append(data[offset : offset + num_bytes])
            offset += _aligned_bytes(tensors[-1])
        if not is_expert:
            _populate(mapped, start + first, start + offset)
    return tensors


def is_of_expert(name: str) -> bool:
    """Return whether the tensor of that name is of one expert of several."""
    return ".experts." in name


def sample_digest(tensors: Sequence[Tensor]) -> str:
    """Return the SHA-256 of samples of tensors of bytes: the first page of each MiB, and the last one.

    A tensor of fewer bytes than a MiB is hashed whole.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        whole = tensor.numel() < SAMPLE_DISTANCE_BYTES
        for piece in torch.split(tensor, SAMPLE_DISTANCE_BYTES):
            digest.update((piece if whole else piece[:SAMPLE_BYTES]).numpy().data)
        digest.update(tensor[-SAMPLE_BYTES:].numpy().data)
    return digest.hexdigest()


def place_weights(model: CpuLlama, stored: Sequence[StoredTensor], tensors: Sequence[Tensor]) -> None:
    """Set the weights of a model without any; raises UnusableWeights, before the first is set, if they do not fit."""
    linears, others = _linears(model), _others(model)
    parts: dict[str, list[PackedPart]] = {name: [] for name in linears}
    values: dict[str, Tensor] = {}
    for described, tensor in zip(stored, tensors, strict=True):
        name = described.name
        if described.weight_format and name in linears:
            part = PackedPart(tensor, _format_named(described.weight_format), described.num_outputs)
            if num_packed_bytes(part.num_outputs, linears[name].in_features, part.weight_format) == tensor.numel():
                parts[name].append(part)
        elif name in others:
            dtype = torch.float32 if model.config.is_wide(name) else torch.bfloat16
            if _is_like(described, others[name], dtype):
                values[name] = tensor.view(dtype).view(others[name].shape)
    has_outputs = {name: sum(part.num_outputs for part in parts[name]) for name in linears}
    missing = others.keys() - values.keys()
    if has_outputs != {name: linear.out_features for name, linear in linears.items()} or not missing <= {
        "embedding.weight"
    }:
        raise UnusableWeights("its tensors are not those of the model")
    for name, linear in linears.items():
        linear.place_packed(parts[name])
    for name, value in values.items():
        model.place_weight(name, value)


def _linears(model: CpuLlama) -> dict[str, PackedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def _others(model: CpuLlama) -> dict[str, Tensor]:
    """Return the parameters that are not packed."""
    packed = {id(part) for linear in _linears(model).values() for part in linear.packed}
    return {name: weight for name, weight in model.named_parameters() if id(weight) not in packed}


def _described(name: str, tensor: Tensor, weight_format: str = "", num_outputs: int = 0) -> StoredTensor:
    return StoredTensor(
        name=name,
        num_bytes=tensor.nbytes,
        shape=list(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        weight_format=weight_format,
        num_outputs=num_outputs,
    )


def _is_like(described: StoredTensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a stored tensor can be the value, in dtype, of a weight that is not packed."""
    return (described.dtype, described.shape, described.num_bytes) == (
        str(dtype).removeprefix("torch."),
        list(weight.shape),
        weight.numel() * dtype.itemsize,
    )


def _format_named(name: str) -> WeightFormat:
    try:
        return WeightFormat(name)
    except ValueError:
        raise UnusableWeights("it has a weight in an unknown format") from None


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _aligned_bytes(tensor: Tensor) -> int:
    return -(-tensor.numel() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _populate(mapped: mmap.mmap, first: int, end: int) -> None:
    """Read some bytes of a mapped file into memory, unless they are there, and map their pages; raises OSError."""
    for start in range(first // mmap.PAGESIZE * mmap.PAGESIZE, end, _POPULATED_BYTES):
        length = min(_POPULATED_BYTES, end - start)
        if start + length < end:  # the next piece is read while the pages of this one are mapped
            ahead = start + length
            with contextlib.suppress(OSError):
                mapped.madvise(mmap.MADV_WILLNEED, ahead, min(_POPULATED_BYTES, end - ahead))
        try:
            mapped.madvise(_MADV_POPULATE_READ, start, length)
        except OSError as error:
            if error.errno != errno.EINVAL:  # of systems without this advice
                raise
