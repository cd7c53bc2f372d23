"""Damaged and unusual folders in MXFP4, NVFP4 and as bitsandbytes stores them.

What bitsandbytes 0.50.2 wrote itself was compared once. NF4 and FP4 in float32, in blocks of 64 and 128, also
double-quantized, were read as the numbers of its `dequantize_4bit`, to the last bit; its bytes with a difference of
8e-8 of the largest weight.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from caravan.cli.report import inspect_model
from caravan.model.backend import choose_backend
from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import read_weights
from caravan.model.config import UnsupportedModel
from caravan.model.loader import load_model, open_checkpoint
from tests.model.oracle import load_checkpoint
from tests.support.float4_folders import INT8_CONFIG, NF4_CONFIG, int8_rows, mxfp4, nf4, nvfp4
from tests.support.quantized_folders import change_tensor, write_folder
from tests.support.transformers_models import edit

FORMS: dict[str, tuple[dict[str, Any], Any]] = {
    "mxfp4": ({"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}, mxfp4),
    "nvfp4": ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, nvfp4(is_modelopt=False)),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, nvfp4(is_modelopt=True)),
    "nf4": (NF4_CONFIG, nf4(is_nested=False)),
    "nested": (NF4_CONFIG, nf4(is_nested=True)),
    "int8": (INT8_CONFIG, int8_rows),
}
STEM = "model.layers.0.self_attn.k_proj"
STATE = "weight.quant_state.bitsandbytes__nf4"


def as_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def with_state(**changes: Any) -> Any:
    def change(old: Tensor) -> Tensor:
        return as_bytes(json.dumps(json.loads(bytes(old.tolist())) | changes))

    return change


def with_scale(number: int) -> Any:
    """Return a change of the first scale to a byte."""

    def change(old: Tensor) -> Tensor:
        old.view(torch.uint8)[0, 0] = number
        return old

    return change


@pytest.mark.parametrize(
    ("name", "leaf", "change", "words"),
    [
        ("mxfp4", "weight_packed", lambda t: t[:, :24], "groups of 32 do not divide 48 inputs"),
        ("mxfp4", "weight_packed", lambda t: t.short(), "weight_packed has the type I16; it must be U8"),
        ("mxfp4", "weight_packed", None, "weight_packed is missing"),
        ("mxfp4", "weight_scale", lambda t: t[:, :1], r"weight_scale has the shape \(32, 1\); it must be \(32, 2\)"),
        ("mxfp4", "weight_scale", lambda t: t.float(), "weight_scale has the type F32; it must be U8 or F8_E8M0"),
        ("nvfp4", "weight_packed", lambda t: t[:, :20], "groups of 16 do not divide 40 inputs"),
        ("nvfp4", "weight_scale", lambda t: t.float(), "weight_scale has the type F32; it must be F8_E4M3"),
        ("nvfp4", "weight_scale", lambda t: t[:1], r"weight_scale has the shape \(1, 4\); it must be \(32, 4\)"),
        ("nvfp4", "weight_scale", with_scale(0x7F), "weight_scale has numbers that are negative or not finite"),
        ("nvfp4", "weight_scale", with_scale(0x81), "weight_scale has numbers that are negative or not finite"),
        ("nvfp4", "weight_global_scale", None, r"weight_global_scale has the shape None; it must be \(1,\)"),
        ("nvfp4", "weight_global_scale", lambda t: t * 0, "weight_global_scale is 0.0; it and the largest weight"),
        ("nvfp4", "weight_global_scale", lambda t: t / 0, "weight_global_scale is inf; it and the largest weight"),
        ("nvfp4", "weight_global_scale", lambda t: t.half(), "weight_global_scale has the type F16; it must be F32"),
        (
            "modelopt",
            "weight_scale_2",
            lambda t: t.expand(2),
            r"weight_scale_2 has the shape \(2,\); it must be \(1,\)",
        ),
        ("modelopt", "weight_scale_2", lambda t: -t, "weight_scale_2 is -.*; it and the largest weight"),
        ("modelopt", "weight_scale_2", lambda t: t * 0 + 3e38, "weight_scale_2 is 3.*e.38; it and the largest weight"),
        ("nvfp4", "weight_global_scale", lambda t: t * 0 + 1e-37, "weight_global_scale is .*; it and the largest"),
        ("mxfp4", "weight_packed", lambda t: t[:, :0], "weight_packed is missing, empty or has not 2 dimensions"),
        ("modelopt", "weight", lambda t: t.view(torch.int8), "weight has the type I8; it must be U8"),
        ("nf4", "weight", lambda t: t[:-1], "weight has 1023 bytes, which do not fit 2048 numbers"),
        ("nf4", "weight", lambda t: t.double(), "weight has the type F64; it must be U8 or"),
        ("nf4", "weight.absmax", lambda t: t[:-1], r"weight.absmax has the shape \(31,\); it must be \(32,\)"),
        ("nf4", "weight.quant_map", lambda t: t[:8], r"weight.quant_map has the shape \(8,\); it must be \(16,\)"),
        ("nf4", STATE, None, "weight.quant_state is missing"),
        ("nf4", STATE, lambda t: t[:-1], "bitsandbytes__nf4 does not hold a JSON object"),
        ("nf4", STATE, lambda t: as_bytes("[" * 9999), "bitsandbytes__nf4 does not hold a JSON object"),
        ("nf4", STATE, lambda t: t.repeat(900), "bitsandbytes__nf4 has .* bytes, more than 65536"),
        ("nf4", STATE, with_state(shape=[32]), r"its quant_state has the shape \[32\]"),
        ("nf4", STATE, with_state(shape=[32, "64"]), "its quant_state has the shape"),
        ("nf4", STATE, with_state(blocksize=0), "its quant_state has blocks of 0"),
        ("nested", STATE, with_state(nested_blocksize=0), "its quant_state has nested blocks of 0"),
        ("nested", "weight.nested_quant_map", None, r"weight.nested_quant_map has the shape None; it must be \(256,\)"),
        ("nested", "weight.nested_absmax", lambda t: t[:1], r"weight.nested_absmax has the shape \(1,\)"),
        ("int8", "weight", lambda t: t.view(torch.uint8), "weight has the type U8; it must be I8"),
        ("int8", "SCB", lambda t: t[:5], r"SCB has the shape \[5\], which does not fit blocks of \[1, 64\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, name: str, leaf: str, change: Any, words: str
) -> None:
    write_folder(tmp_path, *FORMS[name])
    change_tensor(tmp_path, f"{STEM}.{leaf}", change)
    for in_blocks in ([], ["layers.0.attention.qkv.weight"]):
        with pytest.raises(BrokenCheckpoint, match=rf"k_proj: .*{words}"):
            list(read_weights(open_checkpoint(tmp_path), torch.float32, in_blocks=in_blocks))


def test_a_number_that_is_too_large_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, *FORMS["nested"])
    change_tensor(tmp_path, f"{STEM}.{STATE}", with_state(nested_offset=10**400))
    with pytest.raises(BrokenCheckpoint, match="nested_offset is 1000.*; it must be a number"):
        list(read_weights(open_checkpoint(tmp_path), torch.float32))


def test_a_block_size_past_the_matrix_takes_no_memory(tmp_path: Path) -> None:
    write_folder(tmp_path, *FORMS["nested"])
    change_tensor(tmp_path, f"{STEM}.{STATE}", with_state(nested_blocksize=2**44))
    change_tensor(tmp_path, f"{STEM}.weight.nested_absmax", lambda t: t[:1])
    list(read_weights(open_checkpoint(tmp_path), torch.float32))


@pytest.mark.parametrize("quantization", ["none", "native"])
def test_a_scale_that_is_no_number_is_refused(tmp_path: Path, quantization: Any) -> None:
    write_folder(tmp_path, *FORMS["mxfp4"])
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{STEM}.weight_scale"][3, 1] = 255
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    backend = choose_backend(checkpoint, dtype="auto", quantization=quantization, block_size=16)
    with pytest.raises(BrokenCheckpoint, match=r"(k_proj|qkv).weight holds values that are not finite numbers"):
        load_model(checkpoint, backend.dtype, torch.device("cpu"), 64, backend.make_model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_format": torch.tensor(2, dtype=torch.uint8)}, "bitsandbytes in the order of a GPU's tiles"),
        ({"weight_zero_point": torch.zeros(32, dtype=torch.int8)}, "in bytes with zero points"),
    ],
)
def test_bytes_in_another_order_are_refused(tmp_path: Path, changes: dict[str, Tensor], words: str) -> None:
    write_folder(tmp_path, *FORMS["int8"])
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {f"{STEM}.{leaf}": tensor for leaf, tensor in changes.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModel, match=words):
        open_checkpoint(tmp_path)


def test_modelopt_may_say_how_in_a_file_of_its_own(tmp_path: Path) -> None:
    config, quantize = FORMS["modelopt"]
    meant = write_folder(tmp_path, config, quantize)
    edit(tmp_path / "config.json", quantization_config="remove")
    stated = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(stated))
    down = load_checkpoint(tmp_path).get_parameter("layers.1.feed_forward.down.weight")
    torch.testing.assert_close(down.detach(), meant["model.layers.1.mlp.down_proj.weight"], rtol=1e-6, atol=0)
    stated["quantization"] = {"quant_algo": "W4A8_AWQ"}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(stated))
    with pytest.raises(UnsupportedModel, match="quantized by ModelOpt in the form W4A8_AWQ"):
        open_checkpoint(tmp_path)


def test_a_width_that_blocks_do_not_divide_is_widened(tmp_path: Path) -> None:
    meant = write_folder(tmp_path, *FORMS["nvfp4"], hidden_size=48)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.blocks) == {f"model.layers.{i}.{name}_proj.weight" for i in range(2) for name in (
        "self_attn.o", "mlp.down"
    )}  # fmt: skip
    queries = torch.empty(64, 48)
    checkpoint.read("model.layers.0.self_attn.q_proj.weight", queries)
    torch.testing.assert_close(queries, meant["model.layers.0.self_attn.q_proj.weight"], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "method", "kind", "text"),
    [
        ("mxfp4", "compressed-tensors", "MXFP4", "native"),
        ("nvfp4", "compressed-tensors", "NVFP4 with a factor", "native"),
        ("modelopt", "modelopt", "NVFP4 with a factor", "native"),
        ("nf4", "bitsandbytes", None, "bfloat16"),
        ("int8", "bitsandbytes", "Q8_0", "native"),
    ],
)
def test_inspect_names_the_method_and_the_blocks(
    tmp_path: Path, name: str, method: str, kind: str | None, text: str
) -> None:
    write_folder(tmp_path, *FORMS[name])
    rows = dict(inspect_model(tmp_path))
    assert rows["Format"] == f"Hugging Face, quantized by {method}"
    assert kind is None or rows["Blocks"].startswith(f"{kind}: self_attn.q_proj, ")
    assert ("Blocks" in rows) == (kind is not None)
    assert f"MB, {text}" in rows["By default"]
