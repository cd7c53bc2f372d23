"""Adapters that are merged into weights, against the same merge in float64 in a model of transformers."""

import copy
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from caravan.model.backend import choose_backend
from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import read_weights
from caravan.model.config import UnsupportedModel
from caravan.model.cpu.llama import CpuLlama
from caravan.model.cpu.weights_key import weights_key
from caravan.model.loader import load_model, open_checkpoint
from caravan.model.weights_header import WeightsKey
from tests.model.checkpoint.published_formats import write_gguf, write_llama2c, write_meta
from tests.model.oracle import logits_of_every_position, transformers_twin
from tests.support.gguf_files import write_tiny_llama
from tests.support.lora_folders import ALL_LINEAR, change_config, change_tensors, merge_into, write_adapter
from tests.support.ranks import assert_equal_bits, assert_ranks_read_the_whole
from tests.support.transformers_models import VARIANTS, random_model

PROMPT = [3, 250, 17, 88, 4, 199, 42, 7, 120, 60, 1, 9]
META = {"intermediate_size": 128, "rms_norm_eps": 1e-5}


Q8_0 = gguf.GGMLQuantizationType.Q8_0


def our_logits(path: Path, adapter: Path | None) -> Tensor:
    checkpoint = open_checkpoint(path, adapter)
    return logits_of_every_position(load_model(checkpoint, torch.float32, torch.device("cpu"), 64), PROMPT)


def check_logits(path: Path, oracle: Any, adapter: Path, scales: dict[str, float] | None = None) -> None:
    """Compare with the merge by hand, and make sure that the adapter matters."""
    with torch.inference_mode():
        expected = merge_into(copy.deepcopy(oracle), adapter, scales)(torch.tensor([PROMPT])).logits[0].float()
    merged = our_logits(path, adapter)
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)
    assert (merged - our_logits(path, None)).abs().max() > 0.01


@pytest.mark.parametrize("variant", ["llama", "mqa", "tied", "attention bias", "qwen2", "granite"])
@pytest.mark.parametrize("is_rank_stabilised", [False, True])
def test_merged_logits_are_those_of_a_merge_in_float64(tmp_path: Path, variant: str, is_rank_stabilised: bool) -> None:
    kind, changes = VARIANTS[variant]
    oracle = random_model(kind, **changes)
    oracle.save_pretrained(tmp_path)
    adapter = write_adapter(tmp_path / "adapter", oracle, ALL_LINEAR, use_rslora=is_rank_stabilised)
    check_logits(tmp_path, oracle, adapter)


def test_the_default_targets_and_half_precision(tmp_path: Path) -> None:
    oracle = random_model("Llama")
    oracle.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        check_logits(tmp_path, oracle, write_adapter(tmp_path / "adapter", oracle, dtype=dtype))


def test_patterns_set_rank_and_alpha_of_single_matrices(tmp_path: Path) -> None:
    oracle = random_model("Llama")
    oracle.save_pretrained(tmp_path)
    adapter = write_adapter(
        tmp_path / "adapter",
        oracle,
        ("q_proj", "o_proj", "down_proj"),
        ranks={"o_proj": 2, "down_proj": 6},
        rank_pattern={"self_attn.o_proj": 2, r"model\.layers\.\d+\.mlp.down_proj": 6},
        alpha_pattern={"down_proj": 3.0, "layers.1.mlp.down_proj": 99},  # the first match wins
    )
    check_logits(tmp_path, oracle, adapter, {"q_proj": 8 / 4, "o_proj": 8 / 2, "down_proj": 3 / 6})


@pytest.mark.parametrize(("variant", "targets"), [
    ("phi4 mini", ("qkv_proj", "gate_up_proj", "o_proj", "down_proj")),
    ("granite 4", ("q_proj", "input_linear", "output_linear")),
])  # fmt: skip
def test_fused_and_renamed_matrices(tmp_path: Path, variant: str, targets: tuple[str, ...]) -> None:
    kind, changes = VARIANTS[variant]
    oracle = random_model(kind, **changes)
    oracle.save_pretrained(tmp_path)
    check_logits(tmp_path, oracle, write_adapter(tmp_path / "adapter", oracle, targets))


def test_every_format_merges_to_the_same_weights(tmp_path: Path) -> None:
    """Rows of Q and K stand in another order in three of the formats; PEFT has the order of the first."""
    oracle = random_model("Llama", **META)
    oracle.save_pretrained(tmp_path / "hf")
    write_gguf(tmp_path / "m.gguf", oracle, "llama")
    write_llama2c(tmp_path / "m.bin", oracle, version=1)
    write_meta(tmp_path / "meta", oracle)
    adapter = write_adapter(tmp_path / "adapter", oracle, ALL_LINEAR)
    first, *others = (
        dict(read_weights(open_checkpoint(tmp_path / name, adapter), torch.float32))
        for name in ("hf", "m.gguf", "m.bin", "meta")
    )
    for other in others:
        assert other.keys() == first.keys()
        for name, weight in first.items():
            assert torch.equal(torch.as_tensor(weight), torch.as_tensor(other[name])), name


def test_a_weight_is_rounded_once(tmp_path: Path) -> None:
    oracle = random_model("Llama")
    oracle.to(torch.bfloat16).save_pretrained(tmp_path)
    adapter = write_adapter(tmp_path / "adapter", oracle, ALL_LINEAR)
    checkpoint = open_checkpoint(tmp_path, adapter)
    wide = dict(read_weights(checkpoint, torch.float32))
    for name, weight in read_weights(checkpoint, torch.bfloat16):
        assert torch.equal(torch.as_tensor(weight), torch.as_tensor(wide[name]).to(torch.bfloat16)), name


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_have_the_bits_of_one_process(tmp_path: Path, num_ranks: int) -> None:
    oracle = random_model("Llama", hidden_size=72, num_attention_heads=9, num_key_value_heads=3)
    oracle.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path, write_adapter(tmp_path / "adapter", oracle, ALL_LINEAR))
    assert_equal_bits(checkpoint, num_ranks)


@pytest.mark.parametrize("form", ["hf", "m.gguf"])
def test_rows_have_the_same_bits_in_pieces(tmp_path: Path, form: str) -> None:
    oracle = random_model("Llama", **META)
    oracle.save_pretrained(tmp_path / "hf")
    write_gguf(tmp_path / "m.gguf", oracle, "llama")
    adapter = write_adapter(tmp_path / "adapter", oracle, ("q_proj", "down_proj"))
    assert_ranks_read_the_whole(open_checkpoint(tmp_path / form, adapter))


@pytest.mark.parametrize("quantization", ["native", "int8", "int4"])
def test_matrices_in_blocks_are_widened_and_the_others_stay(tmp_path: Path, quantization: Any) -> None:
    twin = transformers_twin(write_tiny_llama(tmp_path / "m.gguf", quantize=Q8_0))
    adapter = write_adapter(tmp_path / "adapter", twin, ("q_proj", "down_proj"))
    plain, merged = open_checkpoint(tmp_path / "m.gguf"), open_checkpoint(tmp_path / "m.gguf", adapter)
    changed = {f"blk.{layer}.{name}.weight" for layer in range(2) for name in ("attn_q", "ffn_down")}
    assert plain.blocks.keys() - merged.blocks.keys() == changed
    assert merged.merged is not None
    assert merged.merged.text == (
        "adapter, rank 4, merged into 4 matrices (down_proj, q_proj), 4 of them widened from blocks"
    )
    wide, base = dict(read_weights(merged, torch.float32)), dict(read_weights(plain, torch.float32))
    model = load_model(
        merged,
        torch.bfloat16,
        torch.device("cpu"),
        64,
        choose_backend(merged, dtype="auto", quantization=quantization, block_size=16).make_model,
    )
    assert isinstance(model, CpuLlama)
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    rows = model.get_submodule("layers.0.feed_forward.down")(x)
    expected = x.float() @ torch.as_tensor(wide["layers.0.feed_forward.down.weight"]).T
    without = x.float() @ torch.as_tensor(base["layers.0.feed_forward.down.weight"]).T
    assert (rows - expected).norm() < 0.2 * (rows - without).norm()  # int4 rounds


def test_another_adapter_has_another_key_of_the_weights(tmp_path: Path) -> None:
    oracle = random_model("Llama")
    oracle.save_pretrained(tmp_path / "model")
    adapters = [write_adapter(tmp_path / f"a{seed}", oracle, seed=seed) for seed in range(2)]

    def key(adapter: Path | None) -> WeightsKey:
        checkpoint = open_checkpoint(tmp_path / "model", adapter)
        return weights_key(checkpoint, load_model(checkpoint, torch.float32, torch.device("cpu"), 64), torch.float32)

    keys = [key(adapter) for adapter in (None, *adapters)]
    assert len({one.file_name for one in keys}) == 3
    change_config(adapters[1], lora_alpha=9)
    assert key(adapters[1]).tensors not in {one.tensors for one in keys}


def test_an_adapter_of_another_model_is_refused_by_the_layer(tmp_path: Path) -> None:
    oracle = random_model("Llama")
    oracle.save_pretrained(tmp_path)
    larger = random_model("Llama", hidden_size=64, head_dim=16)
    deeper = random_model("Llama", num_hidden_layers=5)
    with pytest.raises(UnsupportedModel, match=r"another model: model\.layers\.0\.self_attn\.q_proj has 64 outputs"):
        open_checkpoint(tmp_path, write_adapter(tmp_path / "larger", larger))
    with pytest.raises(UnsupportedModel, match=r"layers\.3\.self_attn\.q_proj; .* no such linear layer in its 3"):
        open_checkpoint(tmp_path, write_adapter(tmp_path / "deeper", deeper))
    with pytest.raises(UnsupportedModel, match="changes lm_head; "):
        open_checkpoint(tmp_path, write_adapter(tmp_path / "head", oracle, ("lm_head",)))


def test_a_layer_that_the_configuration_names_must_be_there(tmp_path: Path) -> None:
    oracle = random_model("Llama")
    oracle.save_pretrained(tmp_path)
    adapter = write_adapter(tmp_path / "adapter", oracle)
    last = "model.layers.2.self_attn.v_proj"
    change_tensors(adapter, {f"{last}.lora_{factor}.weight": None for factor in "AB"})
    with pytest.raises(BrokenCheckpoint, match=rf"lacks the matrices of {last} and 0 more"):
        open_checkpoint(tmp_path, adapter)
    change_config(adapter, layers_to_transform=[0, 1])
    assert open_checkpoint(tmp_path, adapter).merged is not None


def test_a_change_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    oracle = random_model("Llama")
    oracle.save_pretrained(tmp_path)
    adapter = write_adapter(tmp_path / "adapter", oracle)
    name = "model.layers.1.self_attn.v_proj.lora_B.weight"
    change_tensors(adapter, {name: torch.full((24, 4), 3e38)})
    with pytest.raises(BrokenCheckpoint, match=r"model\.layers\.1\.self_attn\.v_proj is too large to be merged"):
        our_logits(tmp_path, adapter)
