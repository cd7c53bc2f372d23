"""gpt-oss in files: from every form the same bits, which are those of transformers; and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from caravan.model.backend import choose_backend
from caravan.model.blocks import StoredRows
from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import read_weights, weight_parts
from caravan.model.checkpoint.transposed_experts import transposed_experts
from caravan.model.config import UnsupportedModel
from caravan.model.llama import Llama
from caravan.model.loader import load_model, open_checkpoint
from caravan.model.rope_scaling import YarnScaling
from caravan.model.share import Share
from tests.model.checkpoint.published_formats import write_gguf
from tests.model.oracle import load_checkpoint, logits_of_every_position
from tests.support.lora_folders import write_adapter
from tests.support.mxfp4_experts import GGUF_FIELDS, Mxfp4Experts, mxfp4_experts
from tests.support.quantized_folders import change_tensor
from tests.support.transformers_models import GPT_OSS, edit, expected_logits, random_model, random_tokens

BLOCKS, SCALES = (f"model.layers.0.mlp.experts.gate_up_proj_{leaf}" for leaf in ("blocks", "scales"))


@pytest.fixture(scope="module")
def experts() -> Mxfp4Experts:
    return mxfp4_experts()


@pytest.fixture(scope="module")
def mxfp4_folder(experts: Mxfp4Experts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mxfp4")
    experts.write_mxfp4(folder)
    return folder


@pytest.fixture(scope="module")
def mxfp4_file(experts: Mxfp4Experts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mxfp4") / "m.gguf"
    experts.write_gguf(path)
    return path


def test_every_form_of_the_same_weights_gives_the_same_bits(
    tmp_path: Path, experts: Mxfp4Experts, mxfp4_folder: Path, mxfp4_file: Path
) -> None:
    experts.write_plain(tmp_path / "plain")
    write_gguf(tmp_path / "m.gguf", experts.oracle, "gpt-oss", **GGUF_FIELDS)
    tokens = random_tokens()
    plain = logits_of_every_position(load_checkpoint(tmp_path / "plain"), tokens)
    torch.testing.assert_close(plain, expected_logits(experts.oracle, tokens), atol=1e-4, rtol=1e-4)
    for path in (mxfp4_folder, mxfp4_file, tmp_path / "m.gguf"):
        assert torch.equal(logits_of_every_position(load_checkpoint(path), tokens), plain), path
    in_bfloat16 = [
        logits_of_every_position(load_checkpoint(path, torch.bfloat16), tokens)
        for path in (tmp_path / "plain", mxfp4_folder, mxfp4_file)
    ]
    assert torch.equal(in_bfloat16[0], in_bfloat16[1])
    assert torch.equal(in_bfloat16[0], in_bfloat16[2])


def test_experts_in_blocks_are_the_rows_of_gate_and_up_projection(mxfp4_folder: Path, mxfp4_file: Path) -> None:
    for path in (mxfp4_folder, mxfp4_file):
        checkpoint = open_checkpoint(path)
        assert set(checkpoint.blocks.values()) == {"MXFP4"}
        names = [name for name in weight_parts(checkpoint) if ".experts." in name and name.endswith("weight")]
        wide = dict(read_weights(checkpoint, torch.float32))
        for name, parts in read_weights(checkpoint, torch.bfloat16, in_blocks=names):
            if name in names:
                assert isinstance(parts, list)
                expected = wide[name]
                assert isinstance(expected, Tensor)
                assert torch.equal(torch.cat([_widened(part) for part in parts]), expected), name


def _widened(part: Any) -> Tensor:
    assert isinstance(part, StoredRows)
    stored = part.stored[part.order].numpy()
    return torch.from_numpy(gguf.dequantize(stored, gguf.GGMLQuantizationType.MXFP4))


def test_rows_of_transposed_experts_can_be_read_over_the_bounds_of_an_expert() -> None:
    tensor = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    name = "model.layers.7.mlp.experts.gate_up_proj"
    matrix = transposed_experts({name: (3, 5, 8), "model.norm.weight": (5,)}, lambda _: tensor)[name]
    rows = tensor.transpose(1, 2).reshape(24, 5)
    assert matrix.shape == (24, 5)
    for some in (slice(None), slice(3, 21), slice(6, 8), slice(1, 24, 2), slice(7, 17, 3)):
        out = torch.empty_like(rows[some])
        matrix.read(out, some)
        assert torch.equal(out, rows[some])


def test_what_a_configuration_leaves_out_is_as_in_transformers(tmp_path: Path) -> None:
    changes = GPT_OSS | {"head_dim": 64, "sliding_window": 128, "num_experts_per_tok": 4, "swiglu_limit": 7.0}
    random_model("GptOss", **changes).save_pretrained(tmp_path)
    left_out = [
        *("head_dim", "sliding_window", "num_experts_per_tok", "swiglu_limit", "swiglu_alpha", "layer_types"),
        *("rope_parameters", "rope_scaling", "rope_theta", "rms_norm_eps", "attention_bias"),
    ]
    edit(tmp_path / "config.json", **dict.fromkeys(left_out, "remove"))
    config = open_checkpoint(tmp_path).config
    assert config.rope_scaling == YarnScaling(factor=32.0, original_max_position=4096, truncates=False)
    assert (config.rope_theta, config.rms_norm_eps, config.head_dim) == (150_000, 1e-5, 64)
    assert (config.sliding_window, config.full_layers, config.num_chosen_experts) == (128, (1,), 4)
    assert (config.swiglu_limit, config.swiglu_alpha) == (7.0, 1.702)
    assert config.has_qkv_bias
    assert config.has_output_bias


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (BLOCKS, lambda t: t[..., :8], "gate_up_proj_blocks has groups of 16; they must be of 32"),
        (BLOCKS, None, "gate_up_proj_scales' has the type U8; supported are F32"),
        (SCALES, None, r"gate_up_proj_scales has the shape None; it must be \(4, 192, 2\)"),
        (SCALES, lambda t: t.float(), "gate_up_proj_scales has the type F32; it must be U8"),
        (SCALES, lambda t: torch.full_like(t, 255), "holds values that are not finite"),
        ("model.layers.1.self_attn.sinks", None, "lacks the tensor model.layers.1.self_attn.sinks"),
        ("model.layers.1.self_attn.sinks", lambda t: t[:2], r"sinks has the shape \[2\]; it must be \[4\]"),
        ("model.layers.0.mlp.router.bias", None, "lacks the tensor model.layers.0.mlp.router.bias"),
        ("model.layers.0.mlp.experts.down_proj_bias", lambda t: t[:, :-1], r"down_proj_bias has the shape \[252\]"),
    ],
)
def test_damaged_folders_are_refused(
    tmp_path: Path, experts: Mxfp4Experts, name: str, change: Callable[[Tensor], Tensor] | None, words: str
) -> None:
    experts.write_mxfp4(tmp_path)
    change_tensor(tmp_path, name, change)
    with pytest.raises((BrokenCheckpoint, UnsupportedModel), match=words):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"expert_gating_func": 2}, "chooses experts by another function than softmax"),
        ({"expert_weights_norm": False}, "the weights of chosen experts do not add up to 1"),
        ({"expert_shared_count": 1}, "has experts that all tokens share"),
    ],
)
def test_what_a_gguf_says_otherwise_is_refused(
    tmp_path: Path, experts: Mxfp4Experts, fields: dict[str, Any], words: str
) -> None:
    experts.write_gguf(tmp_path / "m.gguf", **fields)
    with pytest.raises(UnsupportedModel, match=words):
        open_checkpoint(tmp_path / "m.gguf")
    experts.write_gguf(tmp_path / "other.gguf", expert_gating_func=3)  # softmax over those that are chosen
    assert open_checkpoint(tmp_path / "other.gguf").config.normalizes_expert_weights


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
def test_a_cpu_computes_it_in_plain_pytorch_and_says_so(
    mxfp4_folder: Path, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = open_checkpoint(mxfp4_folder)
    backend = choose_backend(checkpoint, dtype=dtype, quantization="auto", block_size=16)
    assert backend.quantization == "none"
    assert "No kernel has attention sinks, biases of experts and a clamped SwiGLU" in caplog.text
    assert backend.text.endswith(", plain PyTorch")
    model = load_model(checkpoint, backend.dtype, torch.device("cpu"), 64, backend.make_model)
    assert type(model) is Llama
    assert sum(weight.nbytes for weight in model.parameters()) == backend.weight_bytes


@pytest.mark.parametrize("quantization", ["native", "int8", "int4"])
def test_what_only_kernels_compute_is_refused_by_name(mxfp4_folder: Path, quantization: Any) -> None:
    checkpoint = open_checkpoint(mxfp4_folder)
    words = (
        "A model with attention sinks, biases of experts and a clamped SwiGLU runs in plain PyTorch, which does not "
        f"know --quantization {quantization}. Remove the option."
    )
    with pytest.raises(ValueError, match=words):
        choose_backend(checkpoint, dtype="auto", quantization=quantization, block_size=16)


def test_gpus_ranks_and_adapters_are_refused_by_name(tmp_path: Path, mxfp4_folder: Path) -> None:
    checkpoint = open_checkpoint(mxfp4_folder)

    def choose(**options: Any) -> None:
        choose_backend(checkpoint, dtype="auto", quantization="auto", block_size=16, **options)

    with pytest.raises(ValueError, match="A model with experts and attention sinks cannot run on a GPU yet"):
        choose(is_gpu=True)
    with pytest.raises(ValueError, match="A model with experts and attention sinks cannot be split between ranks yet"):
        choose(share=Share(0, 2))
    random_model("GptOss", **GPT_OSS).save_pretrained(tmp_path / "model")
    adapter = write_adapter(tmp_path / "adapter", random_model("GptOss", **GPT_OSS))
    with pytest.raises(UnsupportedModel, match="has experts, and adapters of such models are not supported yet"):
        open_checkpoint(tmp_path / "model", adapter)
