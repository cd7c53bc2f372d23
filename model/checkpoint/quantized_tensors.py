"""Matrices of Hugging Face folders in 4 or 8 bits, by the method that quantized them."""

from collections.abc import Mapping
from pathlib import Path

from caravan.model.checkpoint.bitsandbytes import bitsandbytes
from caravan.model.checkpoint.json_file import JsonFile
from caravan.model.checkpoint.packed_float4 import mxfp4, mxfp4_experts, nvfp4
from caravan.model.checkpoint.packed_int4 import Make, awq, compressed_int4, gptq
from caravan.model.checkpoint.scaled_bytes import scaled_bytes
from caravan.model.checkpoint.stored_matrix import Load, QuantizedTensor, Shapes, StoredMatrix, unsupported

# Each matrix has one of these.
_MARKS = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv", "SCB", "weight.absmax")


def quantized_tensors(
    config: JsonFile, shapes: Shapes, types: Mapping[str, str], load: Load
) -> dict[str, QuantizedTensor]:
    """Return the quantized matrices of the files by the names of the matrices.

    `config` is the quantization_config. Raises UnsupportedModel for a method or a form that is not supported, and
    BrokenCheckpoint for tensors that do not fit together.
    """
    match method_of(config):
        case "awq":
            make = awq(config)
        case "gptq":
            make = gptq(config)
        case "compressed-tensors":
            make = _compressed(config)
        case "fp8" | "fbgemm_fp8":
            make = scaled_bytes
        case "modelopt":
            make = _modelopt(config)
        case "bitsandbytes":
            make = bitsandbytes(config)
        case "mxfp4":
            return _experts(config, shapes, types, load)
        case method:
            raise unsupported(config, f"quantized by {method}")
    found: dict[str, QuantizedTensor] = {}
    for name in shapes:
        for mark in _MARKS:
            stem = name.removesuffix(f".{mark}")
            if stem != name and f"{stem}.weight" not in found:
                found[f"{stem}.weight"] = make(StoredMatrix(config, stem, shapes, types, load))
    return found


def _experts(config: JsonFile, shapes: Shapes, types: Mapping[str, str], load: Load) -> dict[str, QuantizedTensor]:
    """Return the stacked experts of gpt-oss in MXFP4."""
    found: dict[str, QuantizedTensor] = {}
    for name in shapes:
        stem, _, leaf = name.rpartition(".")
        if leaf.endswith("_blocks"):
            word = leaf.removesuffix("_blocks")
            found[f"{stem}.{word}"] = mxfp4_experts(StoredMatrix(config, stem, shapes, types, load), word)
    return found


def quantization_config(folder: Path, fields: JsonFile) -> JsonFile | None:
    """Return how the model in a folder is quantized, or None if it is not.

    Older versions of ModelOpt say it in a file beside config.json.
    """
    stated, beside = fields.part("quantization_config"), folder / "hf_quant_config.json"
    if stated is not None or not beside.is_file():
        return stated
    quantization = JsonFile(beside).part("quantization")
    if quantization is None or "quant_algo" not in quantization:
        return None
    return JsonFile(beside, quantization.raw() | {"quant_method": "modelopt"})


def method_of(config: JsonFile) -> str:
    """Return the method that quantized a model, for messages and as it is named in the files."""
    return ascii(config.text("quant_method", "an unknown method"))[1:-1][:40]


def _modelopt(config: JsonFile) -> Make:
    match config.text("quant_algo", "an unknown method"):
        case "NVFP4":
            return nvfp4
        case "FP8":
            return scaled_bytes
        case other:
            raise unsupported(config, f"quantized by ModelOpt in the form {ascii(other)[1:-1][:40]}")


def _compressed(config: JsonFile) -> Make:
    form, sparsity, transforms = (
        config.text("format", ""),
        config.part("sparsity_config"),
        config.part("transform_config"),
    )
    is_sparse = sparsity is not None and sparsity.text("format", "dense") != "dense"
    if is_sparse or (transforms is not None and transforms.raw()):
        raise unsupported(config, "transformed or sparse by compressed-tensors")
    match form:
        case "pack-quantized":
            return compressed_int4(config)
        case "int-quantized" | "float-quantized" | "naive-quantized":
            return scaled_bytes
        case "mxfp4-pack-quantized":
            return mxfp4
        case "nvfp4-pack-quantized":
            return nvfp4
    raise unsupported(config, f"quantized by compressed-tensors in the form {ascii(form)[1:-1][:40]}")
