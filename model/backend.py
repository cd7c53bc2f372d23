"""Backend: the code and the data types with which this machine computes a model."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch

from caravan.model.attention.cpu import BLOCK_MULTIPLE, CpuAttention
from caravan.model.checkpoint.checkpoint import Checkpoint, Part, grid_bits, num_parameters, weight_parts
from caravan.model.config import ModelConfig
from caravan.model.cpu.build import KernelsUnavailable, load_kernels
from caravan.model.cpu.kernels import Kernels, WeightFormat
from caravan.model.cpu.linear import Quantization, format_of
from caravan.model.cpu.llama import CpuLlama
from caravan.model.cpu.packing import BLOCK_FORMATS, num_packed_bytes
from caravan.model.gpu_requirements import missing_for_gpu
from caravan.model.gpu_weights import int4_weight_bytes
from caravan.model.llama import Llama
from caravan.model.loader import plain_llama

logger = logging.getLogger(__name__)

_TEXTS: Mapping[Quantization, str] = MappingProxyType(
    {
        "none": "bfloat16",
        "native": "native: weights as the file has them, activations rounded to 8 bits",
        "int8": "int8: multiplied in 8 bits; weights rounded to 8, or in 4 as the file has them where that is faster",
        "int4": "int4: stored in 4 or 8 bits as the file has them or rounded to 4, multiplied in bfloat16",
    }
)


@dataclass(frozen=True, kw_only=True)
class Backend:
    """How a model is computed."""

    dtype: torch.dtype  # of the numbers between layers and of the KV cache
    quantization: Quantization
    make_model: Callable[[ModelConfig], Llama]
    weight_bytes: int
    text: str  # for people


def choose_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Return the device; `auto` is a GPU if PyTorch can use one. Raises ValueError for `cuda` without a GPU."""
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ValueError(f"--device cuda: PyTorch {torch.__version__} finds no GPU that it can use.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and has_gpu) else "cpu")


def choose_backend(
    checkpoint: Checkpoint,
    *,
    dtype: str,
    quantization: Literal["auto"] | Quantization,
    block_size: int,
    is_gpu: bool = False,
    fast_matmul: bool = False,
    is_plan: bool = False,
) -> Backend:
    """Return the backend of a model: CudaLlama on a GPU, CpuLlama on a CPU, without kernels plain PyTorch.

    A plan (`is_plan`) is for a GPU of another machine: what this one lacks to run its kernels does not count.

    `auto` and `native` keep weights in blocks as the file has them; a model without any is computed in bfloat16, `none`
    (docs/decisions/0034-quantization-auto.md).
    Raises ValueError for options that contradict each other.
    """
    if is_gpu:
        return _on_gpu(checkpoint, dtype, quantization, fast_matmul=fast_matmul, is_plan=is_plan)
    if fast_matmul:
        raise ValueError("--fast-matmul needs a GPU; the CPU kernels have one way to multiply. Remove the option.")
    kernels: Kernels | None = usable_kernels(block_size)
    if dtype == "auto":
        dtype = "bfloat16" if kernels is not None or torch.cpu._is_avx512_bf16_supported() else "float32"
    if dtype == "float32" and quantization not in ("auto", "none"):
        raise ValueError(
            f"--quantization {quantization} computes in bfloat16; it cannot be combined with --dtype float32."
        )
    if kernels is None or dtype == "float32":
        if quantization not in ("auto", "none"):
            logger.warning("--quantization %s needs the kernels; the weights stay in %s.", quantization, dtype)
        return _plain(checkpoint, getattr(torch, dtype), kernels)
    chosen: Quantization = "native" if quantization == "auto" else quantization
    if chosen == "native" and not checkpoint.blocks:
        chosen = "none"
    return Backend(
        dtype=torch.bfloat16,
        quantization=chosen,
        make_model=lambda config: CpuLlama(config, kernels, chosen),
        weight_bytes=_packed_bytes(checkpoint, chosen, has_byte_products=kernels.has_byte_products()),
        text=_TEXTS[chosen],
    )


def _on_gpu(
    checkpoint: Checkpoint,
    dtype: str,
    quantization: Literal["auto"] | Quantization,
    *,
    fast_matmul: bool,
    is_plan: bool,
) -> Backend:
    """Return CudaLlama, or plain PyTorch with a logged warning if its kernels cannot run. `auto` is `none`."""
    if quantization in ("native", "int8"):
        raise ValueError(f"--quantization {quantization} needs the CPU kernels; a GPU has auto, none and int4.")
    if quantization == "int4" and dtype == "float32":
        raise ValueError("--quantization int4 computes in bfloat16; it cannot be combined with --dtype float32.")
    if quantization == "int4" and fast_matmul:
        raise ValueError("--fast-matmul needs weights in bfloat16; it cannot be combined with --quantization int4.")
    number = torch.float32 if dtype == "float32" else torch.bfloat16
    missing = None if is_plan else missing_for_gpu()
    if missing is not None:
        if quantization == "int4":
            raise ValueError(f"--quantization int4 needs kernels for the GPU. {missing}")
        logger.warning("%s The model runs in plain PyTorch, many times slower.", missing)
        return _plain(checkpoint, number, None)
    chosen: Literal["none", "int4"] = "int4" if quantization == "int4" else "none"

    def make_model(config: ModelConfig) -> Llama:
        from caravan.model.cuda.llama import CudaLlama  # imports Triton, which machines without a GPU need not have

        return CudaLlama(config, torch.device("cuda"), chosen, fast_matmul=fast_matmul)

    name = str(number).removeprefix("torch.")
    text = "int4: layers in 4 bits as the file has them or rounded to 4" if chosen == "int4" else name
    return Backend(
        dtype=number,
        quantization=chosen,
        make_model=make_model,
        weight_bytes=int4_weight_bytes(checkpoint)
        if chosen == "int4"
        else num_parameters(checkpoint) * number.itemsize,
        text=f"{text}, multiplied by cuBLAS" if fast_matmul else text,
    )


def usable_kernels(block_size: int) -> Kernels | None:
    """Return the kernels, or None with a logged warning if they cannot be built or do not support the block size."""
    if block_size % BLOCK_MULTIPLE:
        logger.warning(
            "--block-size %d: the kernels need a multiple of %d. The model runs in plain PyTorch, many times slower.",
            block_size,
            BLOCK_MULTIPLE,
        )
        return None
    try:
        return load_kernels()
    except KernelsUnavailable as error:
        logger.warning(
            "The kernels cannot be built; plain PyTorch is many times slower. Is there a C++ compiler? %s", error
        )
        return None


def _plain(checkpoint: Checkpoint, dtype: torch.dtype, kernels: Kernels | None) -> Backend:
    """Return the backend in plain PyTorch, with the attention kernel if there is one."""
    make_model = plain_llama if kernels is None else lambda config: Llama(config, CpuAttention(kernels))
    return Backend(
        dtype=dtype,
        quantization="none",
        make_model=make_model,
        weight_bytes=num_parameters(checkpoint) * dtype.itemsize,
        text=f"{str(dtype).removeprefix('torch.')}, plain PyTorch",
    )


def _part_bytes(checkpoint: Checkpoint, part: Part, *, is_table: bool, is_head: bool) -> int:
    """Return the size of a part of a weight that is kept as the file has it; a table in blocks stays in the file."""
    kind = checkpoint.blocks.get(part.source)
    table = math.prod(part.shape) * torch.bfloat16.itemsize if is_table and kind is None else 0
    weight_format = WeightFormat.BFLOAT16 if kind is None else BLOCK_FORMATS[kind]
    return table + (num_packed_bytes(part.shape[0], part.shape[1], weight_format) if is_head else 0)


def _packed_bytes(checkpoint: Checkpoint, quantization: Quantization, *, has_byte_products: bool) -> int:
    """Return the size of all weights of CpuLlama, which stores a tied embedding as a table and as an output head."""
    total = 0
    for name, parts in weight_parts(checkpoint).items():
        if quantization == "native" and len(parts[0].shape) > 1:
            is_table = name == "embedding.weight"
            is_head = not is_table or checkpoint.config.tie_embeddings
            total += sum(_part_bytes(checkpoint, part, is_table=is_table, is_head=is_head) for part in parts)
            continue
        num_rows, shape = sum(part.shape[0] for part in parts), parts[0].shape[1:]
        if not shape or name == "embedding.weight":
            total += num_rows * math.prod(shape) * torch.bfloat16.itemsize
        if shape and (name != "embedding.weight" or checkpoint.config.tie_embeddings):
            weight_format = format_of(quantization, grid_bits(checkpoint, parts), has_byte_products=has_byte_products)
            total += num_packed_bytes(num_rows, shape[0], weight_format)
    return total
