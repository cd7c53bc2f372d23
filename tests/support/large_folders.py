"""Hugging Face folders of random bits in the forms of quantizers, large enough to measure what loading them takes.

`python -m tests.support.large_folders FORM FOLDER hidden_size=2048 ...` writes one of another size.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

GROUP = 128
SEVENS = 0x77777777  # GPTQ's zeros less one
SIZES = MappingProxyType(
    {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 1,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 512,
        "max_position_embeddings": 512,
    }
)


def bits(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """Return random bits."""
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(0, 256, (num_bytes,), dtype=torch.uint8).view(dtype).view(shape)


def gptq(rows: int, columns: int) -> dict[str, Tensor]:
    return {
        "qweight": bits(columns // 8, rows),
        "qzeros": torch.full((columns // GROUP, rows // 8), SEVENS, dtype=torch.int32),
        "scales": torch.full((columns // GROUP, rows), 0.003, dtype=torch.float16),
        "g_idx": (torch.arange(columns) // GROUP).int(),
    }


def awq(rows: int, columns: int) -> dict[str, Tensor]:
    return {
        "qweight": bits(columns, rows // 8),
        "qzeros": bits(columns // GROUP, rows // 8),
        "scales": torch.full((columns // GROUP, rows), 0.003, dtype=torch.float16),
    }


def int8(rows: int, columns: int) -> dict[str, Tensor]:
    return {"weight": bits(rows, columns, dtype=torch.int8), "weight_scale": torch.full((rows, 1), 2e-4)}


def float8(rows: int, columns: int) -> dict[str, Tensor]:
    numbers = (bits(rows, columns, dtype=torch.uint8) & 0xBF).view(torch.float8_e4m3fn)  # below 2
    return {"weight": numbers, "weight_scale_inv": torch.full((-(-rows // GROUP), -(-columns // GROUP)), 0.01)}


def nf4(rows: int, columns: int) -> dict[str, Tensor]:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [rows, columns]}
    return {
        "weight": bits(rows * columns // 2, 1, dtype=torch.uint8),
        "weight.absmax": torch.full((rows * columns // 64,), 0.03),
        "weight.quant_map": torch.linspace(-1, 1, 16),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


FORMS: MappingProxyType[str, tuple[dict[str, Any], Callable[[int, int], dict[str, Tensor]]]] = MappingProxyType(
    {
        "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True}, gptq),
        "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True}, awq),
        "int8": ({"quant_method": "compressed-tensors", "format": "int-quantized"}, int8),
        "float8": ({"quant_method": "fp8", "weight_block_size": [GROUP, GROUP]}, float8),
        "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, nf4),
    }
)


def write_large_folder(folder: Path, form: str, **changes: int) -> Path:
    """Write a folder and return it; the sizes are fields of config.json."""
    sizes = {**SIZES, **changes}
    config, layer = FORMS[form]
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    kv = hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    folder.mkdir()
    fields = {"model_type": "llama", **sizes, "quantization_config": config}
    (folder / "config.json").write_text(json.dumps(fields))
    table = torch.randn(sizes["vocab_size"], hidden, dtype=torch.bfloat16)
    tensors = {"model.embed_tokens.weight": table, "lm_head.weight": table.clone()}
    tensors["model.norm.weight"] = torch.ones(hidden)
    rows_and_columns = {
        **{f"self_attn.{word}_proj": (hidden, hidden) for word in "qo"},
        **{f"self_attn.{word}_proj": (kv, hidden) for word in "kv"},
        **{f"mlp.{word}_proj": (inner, hidden) for word in ("gate", "up")},
        "mlp.down_proj": (hidden, inner),
    }
    for number in range(sizes["num_hidden_layers"]):
        prefix = f"model.layers.{number}"
        for name, shape in rows_and_columns.items():
            tensors |= {f"{prefix}.{name}.{leaf}": tensor for leaf, tensor in layer(*shape).items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = torch.ones(hidden)
    save_file(tensors, folder / "model.safetensors")
    return folder


if __name__ == "__main__":
    stated = dict(field.split("=") for field in sys.argv[3:])
    write_large_folder(Path(sys.argv[2]), sys.argv[1], **{name: int(size) for name, size in stated.items()})
