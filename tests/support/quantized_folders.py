"""Hugging Face folders with weights in few bits, written number by number as each format describes them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.transformers_models import random_model

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16, "num_attention_heads": 4}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output that each 4 bits of 32 hold, from the lowest

Tensors = dict[str, Tensor]


def change_tensor(folder: Path, name: str, change: Callable[[Tensor], Tensor] | None) -> None:
    """Replace a tensor of a folder by change(tensor), or remove it if there is no change."""
    tensors = load_file(folder / "model.safetensors")
    old = tensors.pop(name)
    if change is not None:
        tensors[name] = change(old).contiguous()
    save_file(tensors, folder / "model.safetensors")


def write_folder(folder: Path, config: dict[str, Any], quantize: Any, **changes: Any) -> Tensors:
    """Write a random model and return the weights that it stands for, by name.

    `quantize(stem, weight)` returns the tensors of a linear layer, and the weight that they stand for.
    """
    random_model("Llama", **(SIZES | changes)).save_pretrained(folder)
    written, meant = load_file(folder / "model.safetensors"), {}
    stored: Tensors = {}
    for name, weight in written.items():
        if name.endswith("_proj.weight"):
            tensors, meant[name] = quantize(name.removesuffix(".weight"), weight)
            stored |= tensors
        else:
            stored[name] = meant[name] = weight
    save_file(stored, folder / "model.safetensors")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    return meant


def random_grid(weight: Tensor, group: int, *, is_symmetric: bool, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return values [out, in] of 0 to 15, zeros [out, groups] and scales [out, groups] of about the weight's size."""
    generator = torch.Generator().manual_seed(seed + weight.shape[0])
    values = torch.randint(0, 16, weight.shape, generator=generator)
    shape = (weight.shape[0], weight.shape[1] // group)
    zeros = torch.full(shape, 8) if is_symmetric else torch.randint(1, 16, shape, generator=generator)
    scales = ((0.5 + torch.rand(shape, generator=generator)) * weight.std() / 8).half()
    return values, zeros, scales


def in_words(rows: list[list[int]], order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Return rows of numbers of 4 bits, eight in each 32 bits; bits 4 i of a word hold the number of place order[i]."""
    packed = []
    for row in rows:
        words = []
        for start in range(0, len(row), 8):
            word = sum(row[start + place] << 4 * i for i, place in enumerate(order))
            words.append(word - 2**32 if word >= 2**31 else word)
        packed.append(words)
    return torch.tensor(packed, dtype=torch.int32)


def grid_weight(values: Tensor, zeros: Tensor, scales: Tensor, groups: list[int]) -> Tensor:
    """Return (value - zero) * scale, one number after another."""
    rows = zip(values.tolist(), zeros.tolist(), scales.tolist(), strict=True)
    return torch.tensor([[(row[k] - zero[g]) * scale[g] for k, g in enumerate(groups)] for row, zero, scale in rows])


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def random_places(*shape: int, seed: int = 0) -> Tensor:
    """Return random numbers of 4 bits."""
    return torch.randint(0, 16, shape, generator=torch.Generator().manual_seed(seed + shape[0]))


def in_bytes(numbers: list[int], *, high_first: bool = False) -> list[int]:
    """Return pairs of numbers of 4 bits as bytes."""
    low, high = (numbers[1::2], numbers[::2]) if high_first else (numbers[::2], numbers[1::2])
    return [a | b << 4 for a, b in zip(low, high, strict=True)]


def table_weight(places: Tensor, table: Sequence[float], scales: Tensor, group: int) -> Tensor:
    """Return table[place] * scale in float32, one number after another; scales are [out, in / group] in float32."""
    rows = zip(places.tolist(), scales.tolist(), strict=True)
    return torch.tensor([[table[q] * scale[k // group] for k, q in enumerate(row)] for row, scale in rows])
