"""Backend: the code and the data types with which this machine computes a model."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch

from caravan.model.attention.cpu import BLOCK_MULTIPLE, CpuAttention
from caravan.model.checkpoint.checkpoint import Checkpoint, grid_bits, weight_parts
from caravan.model.checkpoint.part import Part
from caravan.model.config import ModelConfig
from caravan.model.cpu.build import KernelsUnavailable, load_kernels
from caravan.model.cpu.kernels import Kernels, WeightFormat
from caravan.model.cpu.linear import Quantization, format_of
from caravan.model.cpu.llama import ROUTER_WEIGHT, CpuLlama
from caravan.model.cpu.packing import BLOCK_FORMATS, num_packed_bytes
from caravan.model.llama import Llama
from caravan.model.loader import plain_llama
from caravan.model.share import Share

logger = logging.getLogger(__name__)

_TEXTS: Mapping[Quantization, str] = MappingProxyType(
    {
        "none": "bfloat16",
        "native": "native: weights as the file has them, activations rounded to 8 bits",
        "int8": "int8: multiplied in 8 bits; weights rounded to 8, or in 4 as the file has them where that is faster",
        "int4": "int4: stored in 4 or 8 bits as the file has them or rounded to 4, multiplied in bfloat16",
    }
)
_GPU_TEXTS: Mapping[Quantization, str] = MappingProxyType(  # of packed weights
    {
        "native": "native: weights as the file has them, multiplied in bfloat16",
        "int8": "int8: layers rounded to 8 bits, multiplied in bfloat16",
        "int4": "int4: layers in 4 or 8 bits as the file has them or rounded to 4, multiplied in bfloat16",
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
    share: Share | None = None,
) -> Backend:
    """Return the backend of a model: CudaLlama on a GPU, CpuLlama on a CPU, without kernels plain PyTorch.

    With a share its weights are those of one rank.

    A plan (`is_plan`) is for a GPU of another machine: what this one lacks to run its kernels does not count.

    A model with parts that the kernels of CPUs lack runs in plain PyTorch there.

    `auto` and `native` keep weights in blocks as the file has them; a model without any is computed in bfloat16, `none`
    (docs/decisions/0034-quantization-auto.md).
    Raises ValueError for options that contradict each other, and for a model with parts that a GPU, several ranks, or a
    quantization cannot compute.
    """
    if share is not None:
        share.check(checkpoint.config)
    if is_gpu and (parts := checkpoint.config.parts_without_gpu()):
        raise ValueError(f"A model with {parts} cannot run on a GPU yet. Set --device cpu.")
    if is_gpu:
        return _on_gpu(checkpoint, dtype, quantization, share, fast_matmul=fast_matmul, is_plan=is_plan)
    if fast_matmul:
        raise ValueError("--fast-matmul needs a GPU; the CPU kernels have one way to multiply. Remove the option.")
    without_kernels = checkpoint.config.parts_without_kernels()
    if without_kernels and quantization not in ("auto", "none"):
        raise ValueError(
            f"A model with {without_kernels} runs in plain PyTorch, which does not know --quantization {quantization}. "
            "Remove the option."
        )
    if without_kernels:
        logger.warning("No kernel has %s. The model runs in plain PyTorch, many times slower.", without_kernels)
    kernels: Kernels | None = None if without_kernels else usable_kernels(block_size)
    if dtype == "auto":
        dtype = "bfloat16" if kernels is not None or torch.cpu._is_avx512_bf16_supported() else "float32"
    if dtype == "float32" and quantization not in ("auto", "none"):
        raise ValueError(
            f"--quantization {quantization} computes in bfloat16; it cannot be combined with --dtype float32."
        )
    if kernels is None or dtype == "float32":
        if quantization not in ("auto", "none"):
            logger.warning("--quantization %s needs the kernels; the weights stay in %s.", quantization, dtype)
        return _plain(checkpoint, getattr(torch, dtype), kernels, share)
    chosen: Quantization = "native" if quantization == "auto" else quantization
    if chosen == "native" and not checkpoint.blocks:
        chosen = "none"
    return Backend(
        dtype=torch.bfloat16,
        quantization=chosen,
        make_model=lambda config: CpuLlama(config, kernels, chosen),
        weight_bytes=_packed_bytes(checkpoint, chosen, share, has_byte_products=kernels.has_byte_products()),
        text=_TEXTS[chosen],
    )


def _on_gpu(
    checkpoint: Checkpoint,
    dtype: str,
    quantization: Literal["auto"] | Quantization,
    share: Share | None,
    *,
    fast_matmul: bool,
    is_plan: bool,
) -> Backend:
    """Return CudaLlama, or plain PyTorch with a logged warning if its kernels cannot run.

    `auto` is `native` for a model with weights in blocks, unless cuBLAS or float32 is asked for, which need plain ones.
    """
    # Imported here: an engine on a CPU imports nothing that is for GPUs.
    from caravan.model.gpu_requirements import missing_for_gpu
    from caravan.model.gpu_weights import gpu_weight_bytes

    if quantization not in ("auto", "none"):
        if dtype == "float32":
            raise ValueError(
                f"--quantization {quantization} computes in bfloat16; it cannot be combined with --dtype float32."
            )
        if fast_matmul:
            raise ValueError(
                "--fast-matmul needs weights in bfloat16; it cannot be combined with "
                f"--quantization {quantization}. Set --quantization none."
            )
    number = torch.float32 if dtype == "float32" else torch.bfloat16
    missing = None if is_plan else missing_for_gpu()
    if missing is not None:
        if quantization not in ("auto", "none"):
            raise ValueError(f"--quantization {quantization} needs kernels for the GPU. {missing}")
        logger.warning("%s The model runs in plain PyTorch, many times slower.", missing)
        return _plain(checkpoint, number, None, share)
    chosen: Quantization = "none" if quantization == "auto" else quantization
    if quantization == "auto" and not fast_matmul and number == torch.bfloat16:
        chosen = "native"
    if chosen == "native" and not checkpoint.blocks:
        chosen = "none"

    def make_model(config: ModelConfig) -> Llama:
        from caravan.model.cuda.llama import CudaLlama  # imports Triton, which machines without a GPU need not have

        return CudaLlama(config, torch.device("cuda"), chosen, fast_matmul=fast_matmul)

    text = _GPU_TEXTS.get(chosen, str(number).removeprefix("torch."))
    return Backend(
        dtype=number,
        quantization=chosen,
        make_model=make_model,
        weight_bytes=gpu_weight_bytes(checkpoint, number, chosen, share),
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


def _plain(checkpoint: Checkpoint, dtype: torch.dtype, kernels: Kernels | None, share: Share | None) -> Backend:
    """Return the backend in plain PyTorch, with the attention kernel if there is one."""
    make_model = plain_llama if kernels is None else lambda config: Llama(config, CpuAttention(kernels))
    return Backend(
        dtype=dtype,
        quantization="none",
        make_model=make_model,
        weight_bytes=sum(
            math.prod(part.shape) * _itemsize(checkpoint.config, name, dtype)
            for name, parts in weight_parts(checkpoint, share).items()
            for part in parts
        ),
        text=f"{str(dtype).removeprefix('torch.')}, plain PyTorch",
    )


def _itemsize(config: ModelConfig, name: str, dtype: torch.dtype) -> int:
    """Return the bytes of a number of a weight that is not packed."""
    return (torch.float32 if config.is_wide(name) else dtype).itemsize


def _part_bytes(checkpoint: Checkpoint, part: Part, num_packed: int, *, is_table: bool) -> int:
    """Return the size of a part of a weight that is kept as the file has it; a table in blocks stays in the file.

    num_packed of its rows are packed.
    """
    kind = checkpoint.blocks.get(part.source)
    table = math.prod(part.shape) * torch.bfloat16.itemsize if is_table and kind is None else 0
    weight_format = WeightFormat.BFLOAT16 if kind is None else BLOCK_FORMATS[kind]
    return table + (num_packed_bytes(num_packed, part.shape[1], weight_format) if num_packed else 0)


def _packed_bytes(
    checkpoint: Checkpoint, quantization: Quantization, share: Share | None, *, has_byte_products: bool
) -> int:
    """Return the size of all weights of CpuLlama, which stores a tied embedding as a table and as an output head."""
    config = checkpoint.config
    num_head_rows = len((share or Share()).outputs(config.vocab_size)) if config.tie_embeddings else 0
    total = 0
    for name, parts in weight_parts(checkpoint, share).items():
        is_table = name == "embedding.weight"
        if name.endswith(ROUTER_WEIGHT):
            total += num_packed_bytes(config.num_experts, config.hidden_size, WeightFormat.BFLOAT16)
            continue
        if quantization == "native" and len(parts[0].shape) > 1:
            for part in parts:
                num_packed = num_head_rows if is_table else part.shape[0]
                total += _part_bytes(checkpoint, part, num_packed, is_table=is_table)
            continue
        num_rows, shape = sum(part.shape[0] for part in parts), parts[0].shape[1:]
        if not shape or is_table:
            total += num_rows * math.prod(shape) * _itemsize(config, name, torch.bfloat16)
        num_packed = num_head_rows if is_table else num_rows
        if shape and num_packed:
            weight_format = format_of(quantization, grid_bits(checkpoint, parts), has_byte_products=has_byte_products)
            total += num_packed_bytes(num_packed, shape[0], weight_format)
    return total
