"""Linear layers in MXFP4, NVFP4 and as bitsandbytes has them, written number by number as each format describes them.

Each function returns the tensors of a layer with random numbers of about the size of `weight`, and the weight that they
stand for.
"""

import json
import math
from typing import Any

import torch
from torch import Tensor

from tests.support.quantized_folders import E2M1, Tensors, in_bytes, random_places, table_weight

# Source: QLoRA (arXiv:2305.14314), appendix E.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
NF4_CONFIG = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
INT8_CONFIG = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}


def mxfp4(stem: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """Powers of two as their exponents plus 127, one for each 32 columns."""
    rows, columns = weight.shape
    places = random_places(rows, columns)
    middle = 127 + round(math.log2(float(weight.std()) / 3))
    exponents = middle - 2 + random_places(rows, columns // 32, seed=1) % 4
    tensors = {
        f"{stem}.weight_packed": torch.tensor([in_bytes(row) for row in places.tolist()], dtype=torch.uint8),
        f"{stem}.weight_scale": exponents.to(torch.uint8),
    }
    scales = torch.tensor([[2.0 ** (exponent - 127) for exponent in row] for row in exponents.tolist()])
    return tensors, table_weight(places, E2M1, scales, 32)


def nvfp4(*, is_modelopt: bool) -> Any:
    """Numbers of type E4M3, one for each 16 columns; all are multiplied by, or divided by, one in float32."""

    def quantize(stem: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        rows, columns = weight.shape
        places = random_places(rows, columns)
        scales = torch.rand(rows, columns // 16, generator=torch.Generator().manual_seed(rows)) * 448
        scales[0, 0] = 2**-8  # below the smallest number with a leading one
        stored = scales.to(torch.float8_e4m3fn)
        packed = torch.tensor([in_bytes(row) for row in places.tolist()], dtype=torch.uint8)
        factor = (weight.std() / 600).float()
        if is_modelopt:
            tensors = {f"{stem}.weight": packed, f"{stem}.weight_scale_2": factor}
            wide = stored.float() * factor
        else:
            inverse = (1 / factor).reshape(1)
            tensors = {f"{stem}.weight_packed": packed, f"{stem}.weight_global_scale": inverse}
            wide = stored.float() / inverse
        unused = "input_scale" if is_modelopt else "input_global_scale"
        tensors |= {f"{stem}.weight_scale": stored, f"{stem}.{unused}": torch.ones(())}
        if is_modelopt and stem.endswith("k_proj"):
            tensors[f"{stem}.k_scale"] = torch.ones(())
        return tensors, table_weight(places, E2M1, wide, 16)

    return quantize


def nf4(*, is_nested: bool, block_size: int = 64, storage: torch.dtype = torch.uint8) -> Any:
    """Numbers of a table, by rows, times the largest magnitude of their block; nested, that is one of a table, too."""

    def quantize(stem: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        rows, columns = weight.shape
        places = random_places(rows * columns)
        generator = torch.Generator().manual_seed(rows)
        num_blocks = -(-rows * columns // block_size)
        size = 2 * float(weight.std())
        state: dict[str, Any] = {
            "quant_type": "nf4", "blocksize": block_size, "dtype": "float32", "shape": list(weight.shape)
        }  # fmt: skip
        if is_nested:
            state |= {"nested_blocksize": 16, "nested_dtype": "float32", "nested_offset": size}
            stored = torch.randint(0, 256, (num_blocks,), generator=generator).to(torch.uint8)
            table = torch.linspace(-1, 1, 256)
            scales = torch.rand(-(-num_blocks // 16), generator=generator) * size / 2
            nested, each = table.tolist(), scales.tolist()
            absmax = [nested[q] * each[i // 16] + size for i, q in enumerate(stored.tolist())]
            tensors = {"absmax": stored, "nested_quant_map": table, "nested_absmax": scales}
        else:
            tensors = {"absmax": torch.rand(num_blocks, generator=generator) * size}
            absmax = tensors["absmax"].tolist()
        packed = torch.tensor(in_bytes(places.tolist(), high_first=True), dtype=torch.uint8)
        tensors["quant_map"] = torch.tensor(NF4)
        tensors["quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        numbers = [NF4[q] * absmax[i // block_size] for i, q in enumerate(places.tolist())]
        meant = torch.tensor(numbers).view(rows, columns)
        named = {f"{stem}.weight.{leaf}": tensor for leaf, tensor in tensors.items()}
        return named | {f"{stem}.weight": packed.view(storage).view(-1, 1)}, meant

    return quantize


def int8_rows(stem: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """Bytes, with 127 times the scale of each row."""
    generator = torch.Generator().manual_seed(len(weight))
    numbers = torch.randint(-127, 128, weight.shape, generator=generator)
    largest = (0.5 + torch.rand(len(weight), generator=generator)) * 2 * weight.std()
    rows = zip(numbers.tolist(), largest.tolist(), strict=True)
    tensors = {
        f"{stem}.weight": numbers.to(torch.int8),
        f"{stem}.SCB": largest,
        f"{stem}.weight_format": torch.zeros((), dtype=torch.uint8),
    }
    return tensors, torch.tensor([[number * scale / 127 for number in row] for row, scale in rows])
