"""Hugging Face folders quantized by AWQ, GPTQ, compressed-tensors and FP8, against formulas and compressed-tensors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from caravan.model.backend import choose_backend
from caravan.model.blocks import NVFP4_WITH_FACTOR
from caravan.model.checkpoint import BrokenCheckpoint, stored_matrix
from caravan.model.checkpoint.checkpoint import read_weights
from caravan.model.config import UnsupportedModel
from caravan.model.cpu.build import load_kernels
from caravan.model.loader import load_model, open_checkpoint
from tests.model.oracle import load_checkpoint, logits_of_every_position
from tests.support.float4_folders import INT8_CONFIG, NF4_CONFIG, int8_rows, mxfp4, nf4, nvfp4
from tests.support.quantized_folders import AWQ_ORDER, change_tensor, grid_weight, in_words, random_grid, write_folder
from tests.support.ranks import assert_ranks_read_the_whole
from tests.support.transformers_models import edit, expected_logits, random_model, random_tokens

GROUP = 32
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}
MODELOPT = {"quant_method": "modelopt"}
PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": GROUP}}},
}


def in_order(weight: Tensor) -> list[int]:
    return [k // GROUP for k in range(weight.shape[1])]


def awq(stem: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    values, zeros, scales = random_grid(weight, GROUP, is_symmetric=False)
    tensors = {
        f"{stem}.qweight": in_words(values.T.tolist(), AWQ_ORDER),
        f"{stem}.qzeros": in_words(zeros.T.tolist(), AWQ_ORDER),
        f"{stem}.scales": scales.T.contiguous(),
    }
    return tensors, grid_weight(values, zeros, scales, in_order(weight))


def gptq(added: int, *, is_symmetric: bool, is_shuffled: bool = False) -> Any:
    def quantize(stem: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        values, zeros, scales = random_grid(weight, GROUP, is_symmetric=is_symmetric)
        groups = in_order(weight)
        if is_shuffled:
            groups = [groups[i] for i in torch.randperm(len(groups), generator=torch.Generator().manual_seed(1))]
        tensors = {
            f"{stem}.qweight": in_words(values.tolist()).T.contiguous(),
            f"{stem}.qzeros": in_words((zeros - added).T.tolist()),
            f"{stem}.scales": scales.T.contiguous(),
            f"{stem}.g_idx": torch.tensor(groups, dtype=torch.int32),
        }
        return tensors, grid_weight(values, zeros, scales, groups)

    return quantize


def packed(*, is_symmetric: bool, is_shuffled: bool = False) -> Any:
    def quantize(stem: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        values, zeros, scales = random_grid(weight, GROUP, is_symmetric=is_symmetric)
        groups = in_order(weight)
        tensors = {
            f"{stem}.weight_packed": in_words(values.tolist()),
            f"{stem}.weight_scale": scales.bfloat16(),
            f"{stem}.weight_shape": torch.tensor(weight.shape),
        }
        if not is_symmetric:
            tensors[f"{stem}.weight_zero_point"] = in_words(zeros.T.tolist()).T.contiguous()
        if is_shuffled:
            groups = groups[::-1]
            tensors[f"{stem}.weight_g_idx"] = torch.tensor(groups, dtype=torch.int32)
        return tensors, grid_weight(values, zeros, scales.bfloat16(), groups)

    return quantize


def scaled(kind: str, *, leaf: str = "weight_scale") -> Any:
    """Bytes with a scale for each row, or float8 numbers with one for each row, for all, or for blocks of 32 x 48."""

    def quantize(stem: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        rows, columns = weight.shape
        generator = torch.Generator().manual_seed(rows)
        if kind == "bytes":
            numbers = torch.randint(-128, 128, weight.shape, generator=generator).to(torch.int8)
        else:
            numbers = (torch.randn(weight.shape, generator=generator) * 50).to(torch.float8_e4m3fn)
        shape = {"all": (1,), "blocks": (-(-rows // 32), -(-columns // 48))}.get(kind, (rows, 1))
        scales = (0.5 + torch.rand(shape, generator=generator)) * float(weight.std()) / 60
        height, width = {"all": (rows, columns), "blocks": (32, 48)}.get(kind, (1, columns))
        grid, plain = scales.view(shape[0], -1).tolist(), numbers.float().tolist()
        meant = torch.tensor(
            [[plain[o][k] * grid[o // height][k // width] for k in range(columns)] for o in range(rows)]
        )
        return {f"{stem}.weight": numbers, f"{stem}.{leaf}": scales}, meant

    return quantize


FORMS: dict[str, tuple[dict[str, Any], Any, str | None]] = {  # with the kind of blocks that keeps them
    "awq": (AWQ, awq, "Q4_1"),
    "gptq": (GPTQ, gptq(1, is_symmetric=True), "Q4_0"),
    "gptq, newer zeros than stated": (GPTQ, gptq(0, is_symmetric=True), "Q4_0"),
    "gptq v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, gptq(0, is_symmetric=True), "Q4_0"),
    "gptq, asymmetric": (GPTQ | {"sym": False}, gptq(1, is_symmetric=False), "Q4_1"),
    "gptq, act-order": (GPTQ | {"desc_act": True}, gptq(1, is_symmetric=True, is_shuffled=True), None),
    "packed": (PACKED, packed(is_symmetric=True), "Q4_0"),
    "packed, asymmetric": (PACKED, packed(is_symmetric=False), "Q4_1"),
    "packed, groups in reverse": (PACKED, packed(is_symmetric=True, is_shuffled=True), "Q4_0"),
    "bytes": (PACKED | {"format": "int-quantized"}, scaled("bytes"), "Q8_0"),
    "float8 by row": (PACKED | {"format": "float-quantized"}, scaled("rows"), None),
    "float8 by tensor": (PACKED | {"format": "float-quantized"}, scaled("all"), None),
    "float8 of fbgemm": ({"quant_method": "fbgemm_fp8"}, scaled("rows"), None),
    "float8 in blocks": (
        {"quant_method": "fp8", "weight_block_size": [32, 48]},
        scaled("blocks", leaf="weight_scale_inv"),
        None,
    ),
    "mxfp4": (PACKED | {"format": "mxfp4-pack-quantized"}, mxfp4, "MXFP4"),
    "nvfp4": (PACKED | {"format": "nvfp4-pack-quantized"}, nvfp4(is_modelopt=False), NVFP4_WITH_FACTOR),
    "nvfp4 of modelopt": (MODELOPT | {"quant_algo": "NVFP4"}, nvfp4(is_modelopt=True), NVFP4_WITH_FACTOR),
    "float8 of modelopt": (MODELOPT | {"quant_algo": "FP8"}, scaled("all"), None),
    "nf4": (NF4_CONFIG, nf4(is_nested=False), None),
    "nf4, nested": (NF4_CONFIG, nf4(is_nested=True), None),
    "nf4 in longer blocks, as bfloat16": (
        NF4_CONFIG,
        nf4(is_nested=False, block_size=96, storage=torch.bfloat16),
        None,
    ),
    "bytes of bitsandbytes": (INT8_CONFIG, int8_rows, "Q8_0"),
}
ROUNDED = {"Q4_0": 0.0, "MXFP4": 0.0, NVFP4_WITH_FACTOR: 2.0**-22}  # relative to the largest weight; others 2^-11


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Any, str | None]:
    monkeypatch.setattr(stored_matrix, "_NUMBERS_AT_ONCE", 1)  # 32 rows of these matrices
    return FORMS[request.param]


def weights_in_model(meant: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return some weights by their names in the model."""
    layer = "model.layers.1."
    parts = [meant[f"{layer}self_attn.{word}_proj.weight"] for word in "qkv"]
    return {
        "layers.1.attention.qkv.weight": torch.cat(parts),
        "layers.1.feed_forward.down.weight": meant[f"{layer}mlp.down_proj.weight"],
        "norm.weight": meant["model.norm.weight"],
    }


def test_weights_are_those_of_the_formula(tmp_path: Path, form: tuple[dict[str, Any], Any, str | None]) -> None:
    config, quantize, _ = form
    meant = write_folder(tmp_path, config, quantize)
    loaded = dict(load_checkpoint(tmp_path).named_parameters())
    for name, weight in weights_in_model(meant).items():
        torch.testing.assert_close(loaded[name].detach(), weight, rtol=1e-6, atol=1e-8, msg=name)


def test_a_folder_has_the_type_of_its_blocks(tmp_path: Path, request: pytest.FixtureRequest, form: Any) -> None:
    config, quantize, kind = form
    write_folder(tmp_path, config, quantize)
    name = request.node.callspec.params["form"]
    without_blocks = "F8_E4M3" if name.startswith("float8") else "GPTQ" if name.startswith("gptq") else "BITSANDBYTES"
    expected = "NVFP4" if kind == NVFP4_WITH_FACTOR else kind or without_blocks
    assert open_checkpoint(tmp_path).file_type == expected


def test_blocks_hold_the_same_weights(tmp_path: Path, form: tuple[dict[str, Any], Any, str | None]) -> None:
    config, quantize, kind = form
    meant = write_folder(tmp_path, config, quantize)
    checkpoint = open_checkpoint(tmp_path)
    if kind is None:
        assert not checkpoint.blocks
        assert choose_backend(checkpoint, dtype="auto", quantization="auto", block_size=16).quantization == "none"
        return
    kernels = load_kernels()
    for name in ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        assert checkpoint.blocks[name] == kind
        weight = meant[name]
        wide = kernels.widen_rows(checkpoint.read_blocks(name), torch.arange(len(weight)), kind)
        # an offset is rounded to 11 bits, a scale in float32, too, but for NVFP4's
        tolerance = float(weight.abs().max()) * ROUNDED.get(kind, 2**-11)
        torch.testing.assert_close(wide, weight, rtol=0, atol=tolerance)


def test_a_rank_reads_its_rows(tmp_path: Path, form: tuple[dict[str, Any], Any, str | None]) -> None:
    write_folder(tmp_path, *form[:2])
    assert_ranks_read_the_whole(open_checkpoint(tmp_path))


def test_a_model_runs_with_its_blocks(tmp_path: Path, form: tuple[dict[str, Any], Any, str | None]) -> None:
    write_folder(tmp_path, *form[:2])
    checkpoint, tokens = open_checkpoint(tmp_path), random_tokens(20)
    backend = choose_backend(checkpoint, dtype="auto", quantization="auto", block_size=16)
    model = load_model(checkpoint, backend.dtype, torch.device("cpu"), 64, backend.make_model)
    exact = logits_of_every_position(load_checkpoint(tmp_path), tokens)
    error = (logits_of_every_position(model, tokens) - exact).pow(2).mean().sqrt() / exact.std()
    assert error < 0.05
    assert sum(weight.nbytes for weight in model.parameters()) == backend.weight_bytes


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM", "W8A8", "FP8_DYNAMIC", "MXFP4A16", "NVFP4A16"])
def test_folders_of_compressed_tensors_are_read_as_it_reads_them(tmp_path: Path, scheme: str) -> None:
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 2}
    oracle = random_model("Llama", **sizes)
    config = QuantizationConfig(
        config_groups={"group_0": preset_name_to_scheme(scheme, ["Linear"])}, ignore=["lm_head"]
    )
    apply_quantization_config(oracle, config)
    for module in oracle.modules():
        arguments = getattr(getattr(module, "quantization_scheme", None), "weights", None)
        if arguments is None:
            continue
        groups = module.weight.unflatten(1, (-1, arguments.group_size or module.weight.shape[1]))
        factor = None
        if hasattr(module, "weight_global_scale"):
            factor = generate_gparam(module.weight.amin().view(1), module.weight.amax().view(1))
            module.weight_global_scale.data = factor
        scales, zeros = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments, global_scale=factor)
        module.weight_scale.data = scales.to(module.weight_scale.dtype)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data = zeros.to(module.weight_zero_point.dtype)
    compressor = ModelCompressor.from_pretrained_model(oracle)
    compressor.compress_model(oracle)
    oracle.save_pretrained(tmp_path)
    compressor.update_config(tmp_path)
    ours = dict(load_checkpoint(tmp_path).named_parameters())
    compressor.decompress_model(oracle)
    names = {"self_attn.o_proj": "attention.output", "mlp.down_proj": "feed_forward.down"}
    for theirs, mine in names.items():
        expected = oracle.get_submodule(f"model.layers.1.{theirs}").weight.detach().float()
        rounded = 2**-7 if scheme == "NVFP4A16" else 1e-6  # it computes in bfloat16
        torch.testing.assert_close(ours[f"layers.1.{mine}.weight"].detach(), expected, rtol=rounded, atol=1e-8)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "hqq"}, "quantized by hqq, which is not supported"),
        ({"quant_method": "bitsandbytes"}, "quantized by bitsandbytes in neither 4 nor 8 bits"),
        ({"quant_method": "mxfp8"}, "quantized by mxfp8"),
        (AWQ | {"bits": 8}, "AWQ in 8 bits, version gemm"),
        (AWQ | {"version": "GEMV"}, "AWQ in 4 bits, version gemv"),
        (GPTQ | {"bits": 3}, "GPTQ in 3 bits"),
        (GPTQ | {"checkpoint_format": "marlin"}, "form marlin"),
        (PACKED | {"format": "mxfp8-quantized"}, "in the form mxfp8-quantized"),
        (MODELOPT | {"quant_algo": "W4A16_AWQ"}, "quantized by ModelOpt in the form W4A16_AWQ"),
        (PACKED | {"config_groups": {}}, "other than 4 bits, or in several ways"),
        (PACKED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "transformed or sparse"),
        (PACKED | {"transform_config": {"config_groups": {}}}, "transformed or sparse"),
    ],
)
def test_methods_that_are_not_supported_are_refused_by_name(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    edit(tmp_path / "config.json", quantization_config=config)
    with pytest.raises(UnsupportedModel, match=words):
        open_checkpoint(tmp_path)


STEM = "model.layers.0.self_attn.k_proj"


@pytest.mark.parametrize(
    ("name", "leaf", "change", "words"),
    [
        ("awq", "qweight", lambda t: t[0], "qweight is missing, empty or has not 2 dimensions"),
        ("awq", "qweight", lambda t: t.long(), "qweight has the type I64; it must be I32"),
        ("awq", "qweight", lambda t: t[:40], "groups of 32 do not divide 40 inputs"),
        ("awq", "scales", lambda t: t[:1], r"scales has the shape \(1, 32\); it must be \(2, 32\)"),
        ("awq", "qzeros", None, r"qzeros has the shape None; it must be \(2, 4\)"),
        ("gptq", "g_idx", lambda t: t + 1, "g_idx names groups that are not there"),
        ("gptq", "g_idx", lambda t: t - 1, "g_idx names groups that are not there"),
        ("gptq", "qzeros", lambda t: t ^ 5, "its zero points are not symmetric, although sym is true"),
        ("packed", "weight_packed", lambda t: t.float(), "weight_packed has the type F32; it must be I32"),
        ("packed", "weight_shape", lambda t: t + 1, "weight_shape is .33, 65., which does not fit its other tensors"),
        ("packed", "weight_scale", lambda t: t[:, :1].expand(-1, 3), "does not fit its other tensors"),
        (
            "float8 by row",
            "weight_scale",
            lambda t: t[:5],
            r"weight_scale has the shape \[5, 1\], which does not fit blocks of \[1, 64\]",
        ),
        ("float8 in blocks", "weight_scale_inv", lambda t: t[:, :1], r"does not fit blocks of \[32, 48\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, name: str, leaf: str, change: Any, words: str
) -> None:
    config, quantize, _ = FORMS[name]
    write_folder(tmp_path, config, quantize)
    change_tensor(tmp_path, f"{STEM}.{leaf}", change)
    for in_blocks in ([], ["layers.0.attention.qkv.weight"]):
        with pytest.raises(BrokenCheckpoint, match=rf"k_proj: .*{words}"):
            list(read_weights(open_checkpoint(tmp_path), torch.float32, in_blocks=in_blocks))


def test_a_tensor_of_a_type_that_only_quantized_ones_have_is_refused(tmp_path: Path) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(UnsupportedModel, match=r"model.norm.weight' has the type I8; supported are F32"):
        open_checkpoint(tmp_path)


def test_logits_are_those_of_transformers_with_the_meant_weights(tmp_path: Path) -> None:
    meant = write_folder(tmp_path, AWQ, awq)
    oracle = random_model("Llama", hidden_size=64, intermediate_size=128, num_hidden_layers=2, head_dim=16)
    oracle.load_state_dict(meant, strict=False)
    tokens = random_tokens(20)
    ours = logits_of_every_position(load_checkpoint(tmp_path), tokens)
    torch.testing.assert_close(ours, expected_logits(oracle, tokens), atol=1e-4, rtol=1e-4)
