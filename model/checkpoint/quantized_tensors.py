"""Matrices of Hugging Face folders in 4 or 8 bits, by the method that quantized them."""

from collections.abc import Mapping

from caravan.model.checkpoint.json_file import JsonFile
from caravan.model.checkpoint.packed_int4 import Make, awq, compressed_int4, gptq
from caravan.model.checkpoint.scaled_bytes import scaled_bytes
from caravan.model.checkpoint.stored_matrix import Load, QuantizedTensor, Shapes, StoredMatrix, unsupported

_MARKS = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv")  # each matrix has one of these


def quantized_tensors(
    config: JsonFile, shapes: Shapes, types: Mapping[str, str], load: Load
) -> dict[str, QuantizedTensor]:
    """Return the quantized matrices of the files by the names of the matrices.

    `config` is the quantization_config. Raises UnsupportedModel for a method or a form that is not supported, and
    BrokenCheckpoint for tensors that do not fit together.
    """
    method = config.text("quant_method", "an unknown method")
    match method:
        case "awq":
            make = awq(config)
        case "gptq":
            make = gptq(config)
        case "compressed-tensors":
            make = _compressed(config)
        case "fp8" | "fbgemm_fp8":
            make = scaled_bytes
        case _:
            raise unsupported(config, f"quantized by {ascii(method)[1:-1][:40]}")
    found: dict[str, QuantizedTensor] = {}
    for name in shapes:
        stem, _, leaf = name.rpartition(".")
        if leaf in _MARKS and f"{stem}.weight" not in found:
            found[f"{stem}.weight"] = make(StoredMatrix(config, stem, shapes, types, load))
    return found


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
    raise unsupported(config, f"quantized by compressed-tensors in the form {ascii(form)[1:-1][:40]}")
