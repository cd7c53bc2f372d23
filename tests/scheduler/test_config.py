"""How the engine's limits follow from memory, and what is refused."""

import pytest
import torch

from caravan.model.cpu.build import load_kernels
from caravan.model.cpu.llama import CpuLlama
from caravan.scheduler.config import PROCESS_BYTES, EngineConfig, EngineLimits, Speculation
from caravan.scheduler.engine_plan import CPU_DEFAULTS, GPU_DEFAULTS, plan_engine, with_defaults
from tests.support.tiny_llama import tiny_engine, tiny_llama


def plan(limits: EngineLimits, free: int = 1_000_000, max_position: int = 2048) -> EngineConfig:
    return plan_engine(limits, kv_bytes_per_token=10, max_position=max_position, free_memory_bytes=free, weight_bytes=0)


def test_the_pool_takes_half_of_the_free_memory_by_default() -> None:
    assert plan(EngineLimits(block_size=16)).num_blocks == 500_000 // 160


@pytest.mark.parametrize(
    ("limits", "num_tokens"),
    [
        (EngineLimits(), 2 * 64 * 2048),
        (EngineLimits(max_num_seqs=3, max_model_len=100), 2 * 3 * 112),  # in whole blocks of 16
        (EngineLimits(kv_cache_memory_bytes=10_000_000), 1_000_000),
        (EngineLimits(max_pool_tokens=1024), 1024),
        (EngineLimits(max_pool_tokens=1024, block_size=48), 21 * 48),
    ],
)
def test_the_pool_of_a_cpu_holds_the_largest_batch_twice_at_most(limits: EngineLimits, num_tokens: int) -> None:
    assert plan(limits, free=10**9).num_tokens == num_tokens


def test_the_pool_of_a_gpu_has_no_such_bound() -> None:
    assert plan_gpu(EngineLimits(max_num_seqs=1), free=10**9).num_tokens > 80_000_000


def test_a_request_of_a_demo_fits_into_its_pool() -> None:
    assert plan(EngineLimits(max_pool_tokens=1024)).max_model_len == 1024
    assert plan(EngineLimits(max_pool_tokens=1024), max_position=512).max_model_len == 512
    assert plan(EngineLimits(max_pool_tokens=1024, block_size=48)).max_model_len == 1008


def plan_gpu(limits: EngineLimits, free: int = 1_000_000) -> EngineConfig:
    return plan_engine(
        limits,
        kv_bytes_per_token=10,
        max_position=2048,
        free_memory_bytes=free,
        weight_bytes=0,
        defaults=GPU_DEFAULTS,
        step_bytes=lambda max_batch_tokens, max_num_seqs, _: 10 * max_batch_tokens + 1000 * max_num_seqs,
    )


def test_the_pool_on_a_gpu_takes_nine_tenths_of_the_free_memory_less_what_a_step_needs() -> None:
    assert plan_gpu(EngineLimits()).num_blocks == (900_000 - 81_920 - 256_000) // 160
    assert plan_gpu(EngineLimits(max_num_seqs=4, max_batch_tokens=100)).num_blocks == (900_000 - 1_000 - 4_000) // 160
    assert plan_gpu(EngineLimits(kv_cache_memory_bytes=950_000)).num_blocks == 950_000 // 160
    with pytest.raises(ValueError, match="Lower --max-model-len or raise --kv-cache-memory"):
        plan_gpu(EngineLimits(), free=200_000)


def test_each_kind_of_device_has_its_own_default_limits() -> None:
    cpu, gpu = (plan(EngineLimits()), plan_gpu(EngineLimits()))
    assert (cpu.max_num_seqs, cpu.max_batch_tokens) == (64, 512)
    assert (gpu.max_num_seqs, gpu.max_batch_tokens) == (256, 8192)
    own = EngineLimits(max_num_seqs=7, max_batch_tokens=9)
    assert with_defaults(own, CPU_DEFAULTS) == with_defaults(own, GPU_DEFAULTS) == own


@pytest.mark.parametrize(
    ("speculation", "has_draft_model", "on_a_cpu", "on_a_gpu"),
    [
        ("auto", False, "on", "off"),
        ("auto", True, "on", "on"),
        ("on", False, "on", "on"),
        ("off", False, "off", "off"),
    ],
)
def test_draft_tokens_come_from_texts_on_a_cpu_and_on_a_gpu_only_if_asked(
    speculation: Speculation, has_draft_model: bool, on_a_cpu: str, on_a_gpu: str
) -> None:
    for defaults, expected in ((CPU_DEFAULTS, on_a_cpu), (GPU_DEFAULTS, on_a_gpu)):
        config = plan_engine(
            EngineLimits(speculation=speculation),
            kv_bytes_per_token=1,
            max_position=2048,
            free_memory_bytes=1_000_000,
            weight_bytes=0,
            max_draft_position=2048 * has_draft_model,
            defaults=defaults,
        )
        assert config.speculation == expected


def test_the_pool_takes_what_was_asked_for() -> None:
    assert plan(EngineLimits(kv_cache_memory_bytes=320_000)).num_tokens == 32_000


def test_a_standby_takes_the_weights_and_a_process_from_the_memory_for_the_pool() -> None:
    limits = EngineLimits(has_standby=True)
    config = plan_engine(
        limits,
        kv_bytes_per_token=10,
        max_position=2048,
        free_memory_bytes=PROCESS_BYTES + 3_000_000,
        weight_bytes=2_000_000,
    )
    assert config.num_blocks == 500_000 // 160
    with pytest.raises(ValueError, match=r"^A standby needs [\d,]+ bytes, but only 1,000,000 are free. Leave out"):
        plan(limits)


def test_a_pool_larger_than_free_memory_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="only 1,000,000 are free. Lower --kv-cache-memory"):
        plan(EngineLimits(kv_cache_memory_bytes=2_000_000))


def test_a_pool_smaller_than_one_request_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="does not fit in a KV pool of 96 tokens. Lower --max-model-len or raise"):
        plan(EngineLimits(kv_cache_memory_bytes=1000))


def test_more_context_than_the_model_was_trained_for_is_refused() -> None:
    with pytest.raises(ValueError, match="trained for 2048 tokens"):
        plan(EngineLimits(max_model_len=4096))


def test_the_context_defaults_to_what_the_model_was_trained_for_up_to_a_bound() -> None:
    assert plan(EngineLimits()).max_model_len == 2048
    assert plan(EngineLimits(), free=10_000_000, max_position=100_000).max_model_len == 8192


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"num_blocks": 0}, "num_blocks is 0; it must be at least 1"),
        ({"block_size": -1}, "block_size is -1"),
        ({"max_model_len": 1}, "room for a prompt token and an output token"),
        ({"max_model_len": 1025}, "does not fit in a KV pool of 1024 tokens"),
    ],
)
def test_impossible_limits_are_refused_by_name(limits: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EngineConfig(**{"num_blocks": 64, "max_model_len": 512} | limits)  # type: ignore[arg-type]  # all are numbers


@pytest.mark.parametrize("block_size", [4, 8, 24])
def test_an_engine_refuses_blocks_that_the_kernels_cannot_have(block_size: int) -> None:
    model = tiny_llama(dtype=torch.bfloat16, make_model=lambda config: CpuLlama(config, load_kernels(), "none"))
    words = f"can have blocks of 16, 32, 48, ... tokens; block_size is {block_size}"
    with pytest.raises(ValueError, match=words):
        tiny_engine(model, block_size=block_size)
    with pytest.raises(ValueError, match=words):
        tiny_engine(tiny_llama(dtype=torch.bfloat16), draft=model, block_size=block_size)
    tiny_engine(model, draft=model, block_size=32)
