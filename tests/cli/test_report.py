"""`caravan inspect` and `caravan plan`: what they say of a model, and that the server then says the same."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import gguf
import pytest
import torch

from benchmarks.gpu_shapes import GPUS
from caravan.cli.gpu_memory import GpuName, gpu_memory_bytes
from caravan.cli.report import inspect_model, plan_model, text_of
from caravan.model.backend import choose_backend
from caravan.model.config import UnsupportedModel
from caravan.model.kv_cache import kv_bytes_per_token
from caravan.model.loader import open_checkpoint
from caravan.scheduler.config import EngineLimits
from caravan.scheduler.memory import gpu_step_bytes
from tests.model.oracle import transformers_twin
from tests.support.gguf_blocks import random_blocks
from tests.support.gguf_files import Tensors, write_tiny_llama
from tests.support.lora_folders import write_adapter
from tests.support.running_server import running_server
from tests.support.tiny_llama import tiny_llama
from tests.support.transformers_models import (
    GEMMA,
    GEMMA_3,
    GPT_OSS,
    GRANITE,
    MIXTRAL,
    PHI_4_MINI,
    edit,
    random_model,
)

pytestmark = pytest.mark.slow


def plan(path: Path, memory_bytes: int, **limits: Any) -> dict[str, str]:
    return plan_with_draft(path, memory_bytes, None, **limits)


def plan_with_draft(path: Path, memory_bytes: int, draft_path: Path | None, **limits: Any) -> dict[str, str]:
    rows = plan_model(
        path,
        memory_bytes=memory_bytes,
        prompt_tokens=40,
        output_tokens=10,
        dtype="float32",
        quantization="auto",
        kv_cache_dtype="auto",
        limits=EngineLimits(**limits),
        draft_path=draft_path,
    )
    return dict(rows)


def test_a_plan_counts_the_draft_model(tiny_model_path: Path) -> None:
    alone, drafted = plan(tiny_model_path, 4_000_000), plan_with_draft(tiny_model_path, 4_000_000, tiny_model_path)
    assert "Draft" not in alone
    assert drafted["Draft"].startswith(alone["Weights"])
    assert "512 of the 1,024 bytes of a token" in drafted["Draft"]
    assert drafted["Weights"] == alone["Weights"]
    tokens = [int(rows["KV pool"].split()[0].replace(",", "")) for rows in (alone, drafted)]
    weights = float(alone["Weights"].split()[0]) * 1e6
    assert tokens[1] == pytest.approx((4e6 - 2 * weights) / 2 / 1024, rel=0.3)
    assert tokens[1] < tokens[0] / 2
    with pytest.raises(ValueError, match="The weights take"):
        plan_with_draft(tiny_model_path, int(1.5 * weights), tiny_model_path)


def test_an_adapter_is_shown_and_its_matrices_are_counted_in_bfloat16(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    twin = transformers_twin(write_tiny_llama(path, quantize=gguf.GGMLQuantizationType.Q8_0))
    adapter = write_adapter(tmp_path / "adapter", twin, ("down_proj",))
    plain, merged = dict(inspect_model(path)), dict(inspect_model(path, adapter))
    assert "LoRA" not in plain
    assert merged["LoRA"] == "adapter, rank 4, merged into 2 matrices (down_proj), 2 of them widened from blocks"
    weights = [
        choose_backend(open_checkpoint(path, one), dtype="auto", quantization="native", block_size=16).weight_bytes
        for one in (None, adapter)
    ]
    assert weights[1] - weights[0] == 2 * 64 * 96 * (2 - 34 / 32)


def plan_for_h200(path: Path, memory_bytes: int) -> dict[str, str]:
    return dict(
        plan_model(
            path,
            memory_bytes=memory_bytes,
            prompt_tokens=400,
            output_tokens=100,
            dtype="auto",
            quantization="auto",
            kv_cache_dtype="auto",
            limits=EngineLimits(),
            gpu="h200",
        )
    )


def test_a_gpu_that_is_not_there_is_planned_as_an_engine_on_it_would(tiny_model_path: Path) -> None:
    rows = plan_for_h200(tiny_model_path, gpu_memory_bytes("h200"))
    config = open_checkpoint(tiny_model_path).config
    reserve = gpu_step_bytes(config, None, 8192, 256, min(config.max_position, 8192))
    weights = choose_backend(
        open_checkpoint(tiny_model_path), dtype="auto", quantization="auto", block_size=16, is_gpu=True, is_plan=True
    ).weight_bytes
    pool = int((141e9 - weights) * 0.9) - reserve
    tokens = pool // (16 * kv_bytes_per_token(config, torch.bfloat16)) * 16
    assert rows["GPU"] == f"h200, 141 GB; {reserve / 1e6:,.0f} MB of it for the tensors of a step"
    assert rows["KV pool"].startswith(f"{tokens:,} tokens")
    assert "max_num_seqs 256" in rows["Batch"]
    assert rows["Prefill"].startswith("13 steps of 8192 tokens")


def test_a_plan_for_a_gpu_needs_neither_triton_nor_a_compiler(
    tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = plan_for_h200(tiny_model_path, gpu_memory_bytes("h200"))
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it fails
    monkeypatch.setenv("PATH", str(tmp_path))
    assert plan_for_h200(tiny_model_path, gpu_memory_bytes("h200")) == expected
    assert expected["Weights"].endswith("MB, bfloat16")
    assert not caplog.text


def test_a_model_that_a_gpu_cannot_hold_is_refused_with_the_way_out(tiny_model_path: Path) -> None:
    with pytest.raises(ValueError, match="The weights take .* Choose another --device"):
        plan_for_h200(tiny_model_path, 1000)


@pytest.mark.parametrize("name", get_args(GpuName))
def test_the_memory_of_a_gpu_is_the_published_one(name: GpuName) -> None:
    published = {gpu.name.lower(): gpu.memory_bytes for gpu in GPUS}
    assert gpu_memory_bytes(name) == published[name]
    assert published.keys() == set(get_args(GpuName))


def test_a_model_is_described(tiny_model_path: Path) -> None:
    rows = dict(inspect_model(tiny_model_path))
    assert rows["Format"] == "GGUF"
    assert rows["Architecture"] == "llama"
    assert rows["Stored as"] == "F32"
    assert rows["Heads"] == "4 of size 16"
    assert rows["KV heads"] == "2 (grouped-query attention, 2 heads for each)"
    assert rows["RoPE"] == "theta 10000, not scaled"
    assert rows["Unsupported"] == "nothing"
    assert "template of" in rows["Chat"]


def test_the_kinds_of_blocks_and_the_cost_by_default_are_shown(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        for name, kind in (("blk.0.attn_v", "Q6_K"), ("blk.1.attn_v", "Q4_K"), ("blk.0.ffn_up", "Q8_0")):
            rows, width = tensors[f"{name}.weight"][0].shape
            blocks = random_blocks(kind, rows, width)
            tensors[f"{name}.weight"] = (blocks, gguf.GGMLQuantizationType[kind])

    model = tiny_llama(hidden_size=256, intermediate_size=512, head_dim=64, vocab_size=278)
    write_tiny_llama(tmp_path / "m.gguf", model=model, change=change)
    rows = dict(inspect_model(tmp_path / "m.gguf"))
    assert rows["Blocks"] == "Q6_K: 1 of 2 attn_v; Q4_K: 1 of 2 attn_v; Q8_0: 1 of 2 ffn_up"
    assert rows["By default"].endswith("native: weights as the file has them, activations rounded to 8 bits")


@pytest.mark.parametrize(("num_kv_heads", "kind"), [(4, "multi-head"), (1, "multi-query")])
def test_the_kind_of_attention_is_named(tmp_path: Path, num_kv_heads: int, kind: str) -> None:
    model = tiny_llama(vocab_size=278, hidden_size=64, intermediate_size=96, head_dim=16, num_kv_heads=num_kv_heads)
    write_tiny_llama(tmp_path / "m.gguf", model=model)
    assert f"({kind} attention)" in dict(inspect_model(tmp_path / "m.gguf"))["KV heads"]


def test_what_is_special_is_named_and_a_missing_tokenizer_hides_nothing(tmp_path: Path) -> None:
    random_model("Qwen2", use_sliding_window=True, sliding_window=20, max_window_layers=1).save_pretrained(tmp_path)
    rows = dict(inspect_model(tmp_path))
    assert rows["Attention"] == "causal, with biases and a window of 20 tokens from layer 1 on"
    assert "has no tokenizer" in rows["Unsupported"]
    edit(tmp_path / "config.json", hidden_act="gelu")
    with pytest.raises(UnsupportedModel, match="activation gelu"):
        inspect_model(tmp_path)


def test_the_flags_of_relatives_are_named(tmp_path: Path) -> None:
    random_model("Granite", **GRANITE).save_pretrained(tmp_path / "granite")
    rows = dict(inspect_model(tmp_path / "granite"))
    assert rows["Attention"] == "causal, with scores multiplied by 0.25"
    assert rows["Factors"] == "embeddings times 54.5455, logits divided by 0.5"
    random_model("Phi3", **PHI_4_MINI).save_pretrained(tmp_path / "phi")
    rows = dict(inspect_model(tmp_path / "phi"))
    assert rows["Attention"] == "causal, with 8 of 16 dimensions of a head rotated"
    assert rows["RoPE"].startswith("theta 1000, scaled: LongRopeScaling(")
    random_model("Olmo2").save_pretrained(tmp_path / "olmo2")
    rows = dict(inspect_model(tmp_path / "olmo2"))
    assert rows["Attention"] == "causal, with query and key norms over all heads"
    assert rows["Ranks"] == "at most 1 (--tensor-parallel)"
    random_model("Gemma2", **GEMMA | {"query_pre_attn_scalar": 30}).save_pretrained(tmp_path / "gemma2")
    rows = dict(inspect_model(tmp_path / "gemma2"))
    assert rows["Architecture"] == "Gemma2ForCausalLM"
    assert rows["Attention"] == "causal, with a window of 17 tokens in 2 of 3 layers and scores multiplied by 0.182574"
    assert rows["Factors"] == "embeddings times 6.9282, logits divided by 1, scores capped at 5, logits capped at 3"
    random_model("Gemma3", **GEMMA_3).save_pretrained(tmp_path / "gemma3")
    rows = dict(inspect_model(tmp_path / "gemma3"))
    assert rows["RoPE"] == "theta 1e+06, not scaled; with a window theta 10000, not scaled"
    random_model("SmolLM3", num_hidden_layers=4).save_pretrained(tmp_path / "smollm3")
    assert dict(inspect_model(tmp_path / "smollm3"))["Attention"] == "causal, with 1 layers without RoPE"


def test_experts_are_counted(tmp_path: Path) -> None:
    random_model("Mixtral", **MIXTRAL).save_pretrained(tmp_path)
    rows = dict(inspect_model(tmp_path))
    count, used = (int(number.replace(",", "")) for number in re.findall(r"\d+(?:,\d+)*", rows["Parameters"]))
    assert count - used == 2 * (4 - 2) * 3 * 48 * 80
    assert rows["Hidden size"] == "48, 80 inside each expert"
    assert rows["Experts"] == "4 in each layer, 2 for a token, their weights add up to 1"
    assert rows["Ranks"] == "at most 1 (--tensor-parallel)"
    assert re.fullmatch(
        r"a token reads about \d MB of the weights, \d+ in a step \d MB if all are as likely; all must be in memory",
        plan(tmp_path, 40_000_000)["Experts"],
    )


def test_what_gpt_oss_has_beyond_others_is_shown(tmp_path: Path) -> None:
    random_model("GptOss", **GPT_OSS).save_pretrained(tmp_path)
    rows = dict(inspect_model(tmp_path))
    assert rows["Architecture"] == "GptOssForCausalLM"
    assert rows["Attention"] == (
        "causal, with a sink for each head and biases and a window of 17 tokens in 2 of 3 layers"
    )
    assert rows["Experts"] == (
        "6 in each layer, 3 for a token, their weights add up to 1, with biases, SwiGLU clamped to 0.7"
    )
    count, used = (int(number.replace(",", "")) for number in re.findall(r"\d+(?:,\d+)*", rows["Parameters"]))
    assert count - used == 3 * (6 - 3) * (3 * 48 * 80 + 2 * 80 + 48)
    assert rows["By default"].endswith("plain PyTorch")
    assert plan(tmp_path, 40_000_000)["Weights"].endswith("plain PyTorch")


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_the_plan_is_what_the_server_then_reports(tiny_model_path: Path, kv_cache_dtype: str) -> None:
    options = ["--kv-cache-memory", "300KiB", "--dtype", "float32", "--kv-cache-dtype", kv_cache_dtype]
    planned = subprocess.run(
        [
            sys.executable,
            "-m",
            "caravan",
            "plan",
            str(tiny_model_path),
            "--prompt",
            "400",
            "--output",
            "112",
            *options,
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    with running_server(tiny_model_path, *options) as running:
        assert f"MB) in {'float32' if kv_cache_dtype == 'auto' else 'int8'}" in running.start_text
        for pattern in (r"KV pool +(.*)", r"(?:Capacity +|Room +for )([\d,]+) requests? of 512"):
            found, expected = re.search(pattern, planned), re.search(pattern, running.start_text)
            assert found
            assert expected
            assert found[1] == expected[1]


def test_the_command_describes_a_model_or_says_in_one_line_why_it_is_refused(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "m.gguf")
    command = [sys.executable, "-m", "caravan", "inspect", str(tmp_path / "m.gguf")]
    assert "KV heads" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert re.fullmatch(r"Cannot inspect .*m\.gguf is not a valid GGUF file.*\n", refused.stderr)


def test_a_standby_is_counted_in_a_plan(tiny_model_path: Path) -> None:
    alone, rows = (plan(tiny_model_path, 258_000_000, has_standby=has_standby) for has_standby in (False, True))
    assert "Standby" not in alone
    weights, standby = (int(re.sub(r"\D", "", rows[name].split(" MB")[0])) for name in ("Weights", "Standby"))
    assert standby == pytest.approx(weights + 250, abs=1)
    num_alone, num_beside = (int(re.sub(r"\D", "", row["KV pool"].split("tokens")[0])) for row in (alone, rows))
    assert num_beside < num_alone / 4
    command = [sys.executable, "-m", "caravan", "plan", str(tiny_model_path), "--prompt", "40", "--standby"]
    assert "Standby" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_more_memory_fits_more_requests(tiny_model_path: Path) -> None:
    few, many = (plan(tiny_model_path, memory)["Capacity"] for memory in (2_000_000, 20_000_000))
    numbers = [int(re.sub(r"\D", "", room.split("requests")[0])) for room in (few, many)]
    assert numbers[0] < numbers[1]


@pytest.mark.parametrize(
    ("memory_bytes", "limits", "words"),
    [
        (1000, {}, "The weights take"),
        (2_000_000, {"kv_cache_memory_bytes": 5_000_000}, "Lower --kv-cache-memory"),
        (20_000_000, {"max_model_len": 49}, "exceeds --max-model-len, 49"),
    ],
)
def test_a_plan_that_cannot_be_says_why(
    tiny_model_path: Path, memory_bytes: int, limits: dict[str, int], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        plan(tiny_model_path, memory_bytes, **limits)


def test_values_stand_in_one_column() -> None:
    assert text_of([("a", "1"), ("long", "2")]) == "a     1\nlong  2"


def test_templates_are_named_with_their_use(tmp_path: Path) -> None:
    named = {"tokenizer.chat_template.tool_use": "x" * 7, "tokenizer.chat_template.rag": "y"}
    write_tiny_llama(tmp_path / "m.gguf", metadata=named)
    assert dict(inspect_model(tmp_path / "m.gguf"))["Chat"].endswith(", another of 7 for tools; not used: rag")


def plan_of_ranks(path: Path, num_ranks: int, num_nodes: int) -> dict[str, str]:
    rows = plan_model(
        path,
        memory_bytes=4_000_000,
        prompt_tokens=40,
        output_tokens=10,
        dtype="float32",
        quantization="auto",
        kv_cache_dtype="auto",
        limits=EngineLimits(),
        num_ranks=num_ranks,
        num_nodes=num_nodes,
    )
    return dict(rows)


def test_a_plan_says_what_a_rank_needs_and_where_ranks_help(tiny_model_path: Path) -> None:
    one, two = plan_of_ranks(tiny_model_path, 1, 1), plan_of_ranks(tiny_model_path, 2, 1)
    assert "Ranks" not in one
    assert re.fullmatch(r"2, each with up to \d+ MB of weights and \d+ MB of the KV pool", two["Ranks"])
    assert two["Machine"] == "one NUMA node, where ranks bring nothing"
    assert plan_of_ranks(tiny_model_path, 2, 2)["Machine"] == "2 NUMA nodes, used at once"
    hint = plan_of_ranks(tiny_model_path, 1, 4)["Ranks"]
    assert hint == "1; --tensor-parallel 4 uses the memory of all 4 NUMA nodes at once"
    tokens = [int(rows["KV pool"].split()[0].replace(",", "")) for rows in (one, two)]
    assert 0.8 * tokens[0] < tokens[1] < tokens[0], "the other rank has the table of embeddings again"


def test_more_ranks_than_heads_cannot_be_planned(tiny_model_path: Path) -> None:
    with pytest.raises(ValueError, match="between at most 4 ranks; there are 5"):
        plan_of_ranks(tiny_model_path, 5, 1)
