"""Engines whose model is computed by 2, 3 or 4 ranks give the bits of one rank, whatever happens around a request."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from caravan.scheduler.messages import Request, StepOutput, StepStats
from tests.scheduler.requests import make_request
from tests.support.extent import is_full
from tests.support.gguf_files import write_tiny_llama
from tests.support.rank_threads import engine_with, start_of
from tests.support.tiny_llama import Transcript, run_to_end, tiny_llama

pytestmark = pytest.mark.slow

# 3 KV heads: two ranks have 2 and 1 of them, and two of four ranks share one.
SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_heads": 12, "num_kv_heads": 3, "head_dim": 64, "vocab_size": 278,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "float32, plain PyTorch": {"dtype": "float32", "block_size": 8},  # a size that the kernels do not have
    "bfloat16, plain PyTorch": {"dtype": "bfloat16", "block_size": 8},
    "float32, attention kernel": {"dtype": "float32"},
    "bfloat16": {"quantization": "none"},
    "bfloat16, int8 pool": {"quantization": "none", "kv_cache_dtype": "int8"},
    "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"},
    "native": {"quantization": "native"},
}
NUM_RANKS = {  # 2: one has more heads; 4: two have the same head; by default a kind has one of them
    kind: (2, 3, 4) if is_full() else (2 + number % 2 * 2,) for number, kind in enumerate(KINDS)
}
TIGHT: dict[str, Any] = {"num_tokens": 160, "max_model_len": 128, "max_batch_tokens": 24, "speculation": "on"}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with 3 KV heads whose matrices are in blocks of Q4_0."""
    path = tmp_path_factory.mktemp("ranks") / "model.gguf"
    write_tiny_llama(path, model=tiny_llama(**SIZES), quantize=gguf.GGMLQuantizationType.Q4_0)
    return path


def prompt(seed: int, length: int) -> list[int]:
    return torch.randint(0, 270, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def requests() -> list[Request]:
    """Return requests of all kinds: some share a stem, some repeat themselves."""
    stem = prompt(7, 40)
    kinds: list[dict[str, Any]] = [
        {"num_logprobs": 3},
        {"temperature": 0.9, "num_logprobs": 2},
        {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2, "num_logprobs": 1},
        {"num_prompt_logprobs": 2, "num_logprobs": 0},
    ]
    made = [
        make_request(index, [*stem, *prompt(index, 9 + index)], seed=index, max_tokens=30, **kinds[index % 4])
        for index in range(8)
    ]
    made.append(make_request(8, [*stem, 3, 4], pooling="mean", max_tokens=0))
    made.append(make_request(9, [5, 6, 7] * 12, num_logprobs=1, max_tokens=40))
    return made


def answers(
    path: Path,
    num_ranks: int,
    kind: str,
    on_step: Callable[[StepOutput], object] = lambda _: None,
    *,
    num_tokens: int = 4096,
    **limits: Any,
) -> dict[int, Transcript]:
    options = KINDS[kind] | limits
    item = {"float32": 4}.get(options.get("dtype", ""), 2)
    pool_bytes = num_tokens * 2 * 2 * SIZES["num_kv_heads"] * SIZES["head_dim"] * item  # int8 rows are shorter
    if num_ranks > SIZES["num_kv_heads"]:
        pool_bytes = pool_bytes * num_ranks // SIZES["num_kv_heads"]  # two of them have the same head
    with engine_with(start_of(path, num_ranks, pool_bytes=pool_bytes, **options)) as engine:
        assert engine.config.num_ranks == num_ranks
        first = run_to_end(engine, requests(), arrive_every=2, on_step=on_step)
        again = run_to_end(engine, requests(), arrive_every=3, on_step=on_step)  # with drafts from the first answers
        assert again == first
        return first


class Sums:
    """What happened in the steps of a run."""

    def __init__(self) -> None:
        self.steps: list[StepStats] = []

    def __call__(self, output: StepOutput) -> None:
        self.steps.append(output.stats)

    def of(self, name: str) -> int:
        return sum(getattr(one, name) for one in self.steps)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_give_the_bits_of_one_rank_in_every_quantization(kind: str, model_path: Path) -> None:
    expected = answers(model_path, 1, kind)
    for num_ranks in NUM_RANKS[kind]:
        sums = Sums()
        assert answers(model_path, num_ranks, kind, sums, **TIGHT) == expected, num_ranks
        assert sums.of("num_preemptions") > 0
        assert sums.of("prefix_cache_hits") > 0
        assert sums.of("num_accepted_tokens") > 0
        assert max(one.num_prefill_tokens for one in sums.steps) <= 24


def test_a_draft_model_is_whole_in_the_first_rank_and_changes_no_answer(model_path: Path) -> None:
    sums = Sums()
    drafted = answers(model_path, 2, "bfloat16", sums, draft_model_path=str(model_path), speculation="on")
    assert drafted == answers(model_path, 1, "bfloat16")
    assert sums.of("num_model_accepted_tokens") > 0
