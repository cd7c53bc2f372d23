"""Tiny engines of every kind of weights, attention and pool."""

from functools import cache
from typing import Any

import torch

from caravan.model.attention.cpu import CpuAttention
from caravan.model.cpu.build import load_kernels
from caravan.model.cpu.linear import Quantization
from caravan.model.cpu.llama import CpuLlama
from caravan.model.llama import Llama
from caravan.model.loader import plain_llama
from caravan.scheduler.engine import Engine
from tests.support.fake_device import FakeDevice
from tests.support.tiny_llama import MakeModel, tiny_engine, tiny_llama

# plain PyTorch in two dtypes, the kernel of attention alone, and all kernels with weights in 16, 8 and 4 bits
KINDS = ["float32", "bfloat16", "float32 attention", "none", "int8", "int4"]


@cache
def model_in(kind: str, **changes: Any) -> Llama:
    dtype = torch.float32 if kind.startswith("float32") else torch.bfloat16
    return tiny_llama(dtype=dtype, make_model=maker(kind), **changes)


def maker(kind: str) -> MakeModel:
    match kind.removesuffix(", overlapped").removesuffix(", int8 pool"):
        case "float32" | "bfloat16":
            return plain_llama
        case "float32 attention":
            return lambda config: Llama(config, CpuAttention(load_kernels()))
        case "none" | "int8" | "int4":
            quantization: Quantization = (
                "none" if kind.startswith("none") else "int8" if kind.startswith("int8") else "int4"
            )
            return lambda config: CpuLlama(config, load_kernels(), quantization)
    raise AssertionError(kind)


def block_sizes(kind: str) -> list[int]:
    return [4, 8, 16] if kind.split(", ")[0] in ("float32", "bfloat16") else [16, 32]


def engine_of(kind: str, model: Llama | None = None, **limits: Any) -> Engine:
    """Return an engine; with "overlapped" in its kind, a fake device computes its steps as late as possible."""
    kv_dtype = torch.int8 if "int8 pool" in kind else None
    fake_device = FakeDevice() if kind.endswith("overlapped") else None
    return tiny_engine(model or model_in(kind), kv_dtype, fake_device=fake_device, **limits)


def random_prompt(seed: int, length: int) -> list[int]:
    return torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
