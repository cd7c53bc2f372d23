"""GGUF files for tests whose matrices are random blocks."""

import math
from pathlib import Path
from typing import Any

import gguf

from tests.support.gguf_blocks import random_blocks
from tests.support.gguf_files import Tensors, write_tiny_llama
from tests.support.tiny_llama import tiny_llama

SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 278}


def put(tensors: Tensors, name: str, kind: str, seed: int) -> None:
    *rows, width = tensors[name][0].shape
    blocks = random_blocks(kind, math.prod(rows), width, seed)
    tensors[name] = (blocks.reshape(*rows, -1), gguf.GGMLQuantizationType[kind])


def write_model(path: Path, kinds: dict[str, str], **changes: Any) -> Path:
    """Write a model of two layers.

    `kinds` are the kinds of blocks of its tensors by part of their names; the last one that fits wins, and "" is none.
    """

    def change(tensors: Tensors) -> None:
        for seed, name in enumerate(list(tensors)):
            kind = [kind for part, kind in kinds.items() if part in name][-1:]
            if kind and kind[0] and tensors[name][0].ndim > 1 and not name.endswith("gate_inp.weight"):
                put(tensors, name, kind[0], seed)

    write_tiny_llama(path, model=tiny_llama(**(SIZES | changes)), change=change)
    return path
