"""Hugging Face folders as transformers writes them: equal logits and greedy tokens, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from caravan.model.checkpoint import BrokenCheckpoint, safetensors_files
from caravan.model.config import UnsupportedModel
from caravan.model.loader import open_checkpoint
from tests.model.oracle import load_checkpoint, logits_of_every_position
from tests.scheduler.requests import make_request
from tests.support.tiny_llama import run_to_end, tiny_engine
from tests.support.transformers_models import (
    GEMMA_3,
    GEMMA_3_ROPE,
    LONGROPE,
    NUM_TOKENS,
    PARTLY,
    VARIANTS,
    YARN,
    edit,
    expected_logits,
    random_model,
    random_tokens,
)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_greedy_tokens_equal_transformers(name: str, tmp_path: Path) -> None:
    kind, changes = VARIANTS[name]
    oracle = random_model(kind, **changes)
    oracle.save_pretrained(tmp_path)
    model = load_checkpoint(tmp_path)
    tokens = random_tokens()
    torch.testing.assert_close(
        logits_of_every_position(model, tokens), expected_logits(oracle, tokens), atol=1e-4, rtol=1e-4
    )
    expected = list(tokens)
    for _ in range(8):
        expected.append(int(expected_logits(oracle, expected)[-1].argmax()))
    request = make_request(0, tokens, max_tokens=8)
    assert run_to_end(tiny_engine(model, max_model_len=128), [request])[0].token_ids == expected[NUM_TOKENS:]


def test_dynamic_scaling_equals_transformers_for_a_text_of_the_served_length(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 4.0}
    oracle = random_model("Llama", max_position_embeddings=32, rope_parameters=rope)
    oracle.save_pretrained(tmp_path)
    assert open_checkpoint(tmp_path).config.max_position == 128
    for length in (20, 32, 33, NUM_TOKENS):
        model = load_checkpoint(tmp_path, max_position=length)
        tokens = random_tokens(length)
        torch.testing.assert_close(
            logits_of_every_position(model, tokens), expected_logits(oracle, tokens), atol=1e-4, rtol=1e-4
        )


def test_the_rope_of_gemma_3_is_read_from_older_configurations(tmp_path: Path) -> None:
    rope = {name: parameters | {"rope_theta": 777.0} for name, parameters in GEMMA_3_ROPE.items()}
    oracle = random_model("Gemma3", **GEMMA_3 | {"rope_parameters": rope})
    oracle.save_pretrained(tmp_path)
    expected = open_checkpoint(tmp_path).config
    older = {"rope_theta": 777.0, "rope_local_base_freq": 777.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    changes = {"rope_parameters": "remove", "layer_types": "remove", "sliding_window_pattern": 6} | older
    edit(tmp_path / "config.json", **changes)
    assert open_checkpoint(tmp_path).config == expected
    edit(tmp_path / "config.json", **dict.fromkeys(("rope_theta", "rope_local_base_freq"), "remove"))
    config = open_checkpoint(tmp_path).config
    assert (config.rope_theta, config.window_rope_theta) == (1e6, 1e4)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 777.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 777.0, "rope_type": "linear", "factor": 2.0}},
    ],
)
def test_rope_is_read_from_older_and_newer_configurations(tmp_path: Path, rope: dict[str, Any]) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    edit(tmp_path / "config.json", **{"rope_parameters": "remove"} | rope)
    config = open_checkpoint(tmp_path).config
    assert config.rope_theta == 777.0
    assert config.rope_scaling is not None


def test_shards_are_one_model(tmp_path: Path) -> None:
    oracle = random_model("Llama")
    oracle.save_pretrained(tmp_path / "whole")
    oracle.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    whole, sharded = (load_checkpoint(tmp_path / name).state_dict() for name in ("whole", "sharded"))
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_types_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    oracle = random_model("Llama").to(dtype)
    oracle.save_pretrained(tmp_path)
    embedding = load_checkpoint(tmp_path).embedding.weight
    assert torch.equal(embedding, oracle.model.embed_tokens.weight.float())


def test_an_explicit_head_wins_over_the_embedding(tmp_path: Path) -> None:
    oracle = random_model("Llama")
    oracle.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", tie_word_embeddings=True)
    assert torch.equal(load_checkpoint(tmp_path).head(), oracle.lm_head.weight)


def test_names_of_llama_are_read_as_llama(tmp_path: Path) -> None:
    oracle = random_model("Llama", head_dim=12)
    oracle.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", model_type="internlm3", architectures=["InternLM3ForCausalLM"], qkv_bias=False)
    tokens = random_tokens()
    torch.testing.assert_close(
        logits_of_every_position(load_checkpoint(tmp_path), tokens),
        expected_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), tokens),
        atol=1e-4,
        rtol=1e-4,
    )
    edit(tmp_path / "config.json", bias=True)
    with pytest.raises(UnsupportedModel, match="biases in the feed-forward network"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("variant", "changes", "error", "words"),
    [
        ("smollm3", {"no_rope_layers": [1, 0]}, BrokenCheckpoint, "a 0 or 1 for each of 5 layers"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1, 2]}, BrokenCheckpoint, "a 0 or 1 for each of 5 layers"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, BrokenCheckpoint, "one in 0 without RoPE"),
        ("smollm3", {"no_rope_layers": None, "num_hidden_layers": 10**9}, BrokenCheckpoint, "one in 4 without RoPE"),
        ("smollm3", {"use_sliding_window": True}, UnsupportedModel, "windows in its layers without RoPE"),
        ("gemma2", {"use_bidirectional_attention": True}, UnsupportedModel, "has attention to later tokens"),
        ("gemma2", {"hidden_activation": "gelu"}, UnsupportedModel, "activation gelu; only gelu_pytorch_tanh"),
        ("gemma2", {"query_pre_attn_scalar": 0}, UnsupportedModel, "factor of scores must be positive"),
        ("gemma2", {"attn_logit_softcapping": -1.0}, UnsupportedModel, "soft caps of scores and logits must be pos"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, UnsupportedModel, "a soft cap of scores, which Gemma 3 cannot"),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}},
            UnsupportedModel,
            "scales RoPE in layers with a window by 'linear'",
        ),
        ("ministral3", {"rope_parameters": YARN}, BrokenCheckpoint, "llama_4_scaling_beta is missing"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 3}, UnsupportedModel, "layers of 'chunked_attention'"),
        ("gemma2", {"layer_types": None, "num_hidden_layers": 10**9}, BrokenCheckpoint, "one in 2 without a window"),
        ("granite", {"residual_multiplier": 0.0}, UnsupportedModel, "factor of residual is 0; it must be from 1e-06"),
        ("granite", {"logits_scaling": -1}, UnsupportedModel, "factor of logits is -1"),
        ("granite 4", {"num_local_experts": 8}, UnsupportedModel, "mixture of experts"),
        ("granite 4", {"layer_types": ["mamba"] * 3}, UnsupportedModel, "Mamba layers"),
        ("granite 4", {"layer_types": "remove"}, UnsupportedModel, "Mamba layers"),
        ("granite 4", {"position_embedding_type": None}, UnsupportedModel, "no RoPE in any layer"),
        ("longrope", {"rope_parameters": LONGROPE | {"rope_type": "linear"}}, UnsupportedModel, "Phi-3 is longrope"),
        ("longrope", {"rope_parameters": LONGROPE | {"factor": 0}}, BrokenCheckpoint, "must be positive"),
        ("longrope", {"rope_parameters": LONGROPE | {"long_factor": [1, 0]}}, BrokenCheckpoint, "long_factor must be"),
        ("longrope", {"rope_parameters": LONGROPE | {"long_factor": []}}, BrokenCheckpoint, "long_factor must be"),
        ("longrope", {"rope_parameters": LONGROPE | {"short_factor": [1]}}, UnsupportedModel, "must have 4 numbers"),
        ("phi4 mini", {"rope_parameters": PARTLY | {"partial_rotary_factor": 1e300}}, BrokenCheckpoint, "from 0 to 1"),
        ("phi4 mini", {"rope_parameters": PARTLY | {"partial_rotary_factor": 0.7}}, UnsupportedModel, "11 of the 16"),
    ],
)
def test_what_a_relative_of_llama_cannot_have_is_refused_by_name(
    tmp_path: Path, variant: str, changes: dict[str, Any], error: type[ValueError], words: str
) -> None:
    kind, fields = VARIANTS[variant]
    random_model(kind, **fields).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", **changes)
    with pytest.raises(error, match=words):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, UnsupportedModel, "describes 'GPT2LMHeadModel'"),
        (
            {"architectures": "remove", "model_type": "remove"},
            UnsupportedModel,
            "describes None with the model_type ''",
        ),
        ({"architectures": None, "model_type": "gpt2"}, UnsupportedModel, "model_type 'gpt2'; supported are llama"),
        ({"model_type": "gpt2"}, UnsupportedModel, "describes 'LlamaForCausalLM' with the model_type 'gpt2'"),
        ({"partial_rotary_factor": 0.5}, UnsupportedModel, "a part of each head"),
        ({"quantization_config": {"quant_method": "hqq"}}, UnsupportedModel, "quantized by hqq.* or a GGUF file"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, UnsupportedModel, "quantized by bitsandbytes"),
        ({"mlp_bias": True}, UnsupportedModel, "biases in the feed-forward"),
        ({"hidden_act": "gelu"}, UnsupportedModel, "activation gelu"),
        ({"rope_parameters": {"rope_type": "longrope"}}, UnsupportedModel, "'longrope'; supported are linear"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, UnsupportedModel, "a part of each head"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, BrokenCheckpoint, "must be positive"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2}}, BrokenCheckpoint, "low_freq_factor is missing"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 1}},
            BrokenCheckpoint,
            "low_freq_factor must be positive and below",
        ),
        (
            {
                "model_type": "qwen2",
                "architectures": None,
                "use_sliding_window": True,
                "layer_types": ["full_attention"],
            },
            BrokenCheckpoint,
            "layer_types has 1 entries for 3 layers",
        ),
        ({"rope_parameters": 5}, BrokenCheckpoint, "rope_parameters is 5; it must be an object"),
        ({"hidden_size": "remove"}, BrokenCheckpoint, "hidden_size is missing; it must be a whole number"),
        ({"hidden_size": "48"}, BrokenCheckpoint, "hidden_size is '48'"),
        ({"num_hidden_layers": 2}, UnsupportedModel, "which this architecture does not have"),
        ({"num_hidden_layers": 4}, BrokenCheckpoint, "lacks the tensors model.layers.3"),
        ({"num_hidden_layers": 10**9}, BrokenCheckpoint, "should have 1000000000 layers"),
        ({"num_attention_heads": 3}, UnsupportedModel, "multiple of num_kv_heads"),
        ({"num_attention_heads": 0}, UnsupportedModel, "num_heads is 0"),
        ({"intermediate_size": 81}, BrokenCheckpoint, "has the shape"),
        ({"rms_norm_eps": float("nan")}, BrokenCheckpoint, "rms_norm_eps is nan"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], error: type[ValueError], words: str
) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    edit(tmp_path / "config.json", **changes)
    with pytest.raises(error, match=words) as raised:
        load_checkpoint(tmp_path)
    assert str(tmp_path) in str(raised.value) or error is UnsupportedModel
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(BrokenCheckpoint, match=r"config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("weight_map", [{}, {"a": "../../etc/passwd"}, {"a": "x.bin"}, {"a": "gone.safetensors"}])
def test_threat_25_an_index_names_files_of_its_folder_only(tmp_path: Path, weight_map: dict[str, str]) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(BrokenCheckpoint):
        open_checkpoint(tmp_path)


def test_a_tensor_in_two_files_and_too_many_tensors_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in names:
        save_file(weights, tmp_path / name)
    index = {"weight_map": {tensor: names[number % 2] for number, tensor in enumerate(weights)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BrokenCheckpoint, match=r"is in model-00001-of-00002\.safetensors, too"):
        open_checkpoint(tmp_path)
    monkeypatch.setattr(safetensors_files, "_MAX_TENSORS", 3)
    with pytest.raises(BrokenCheckpoint, match="tensors, more than 3"):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights_says_what_it_lacks(tmp_path: Path) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="supported are safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(BrokenCheckpoint, match=r"no model\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("model.norm.weight", torch.full((48,), float("nan")), BrokenCheckpoint, "not finite"),
        ("model.norm.weight", torch.ones(48, dtype=torch.int8), UnsupportedModel, "type I8; supported are"),
        ("model.norm.weight", torch.ones(48, 1), BrokenCheckpoint, "has the shape"),
        ("model.extra.weight", torch.ones(2), UnsupportedModel, "which this architecture does not have"),
    ],
)
def test_threat_24_a_wrong_tensor_is_refused_by_name(
    tmp_path: Path, name: str, value: torch.Tensor, error: type[ValueError], words: str
) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {name: value}, path)
    with pytest.raises(error, match=words) as raised:
        load_checkpoint(tmp_path)
    assert name in str(raised.value)


def test_a_rotary_table_of_older_versions_does_no_harm(tmp_path: Path) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}, path)
    load_checkpoint(tmp_path)
