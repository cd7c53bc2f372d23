"""The plan of the memory of several engines that share a budget."""

import io
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from caravan.scheduler import memory_plan, spill_plan
from caravan.scheduler.config import PROCESS_BYTES, EngineLimits
from caravan.scheduler.memory import gpu_step_bytes
from caravan.scheduler.memory_needs import MemoryNeeds, MemoryPlan, PlanFailed, PlanMemory
from caravan.scheduler.memory_plan import BUDGET_SHARE, main, plan_memory
from caravan.scheduler.messages import StartEngine
from caravan.scheduler.model_costs import model_costs
from caravan.scheduler.rank_memory import usable_bytes
from caravan.server.engine.memory_plan import plan_memory as ask_for_plan

GIB = 2**30
MANY = 20_000  # sequences in a batch: no pool here has room for twice as many


def start(path: Path, **limits: object) -> StartEngine:
    return StartEngine(model_path=str(path), dtype="float32", limits=EngineLimits(**limits))  # type: ignore[arg-type]


def needs(*starts: StartEngine, budget_bytes: int | None = GIB) -> tuple[MemoryNeeds, ...]:
    plan = plan_memory(PlanMemory(starts=[*starts], budget_bytes=budget_bytes))
    assert isinstance(plan, MemoryPlan), plan
    assert budget_bytes is None or plan.budget_bytes == budget_bytes
    return tuple(plan.needs)


def reason(*starts: StartEngine, budget_bytes: int = GIB) -> tuple[int, str]:
    failed = plan_memory(PlanMemory(starts=[*starts], budget_bytes=budget_bytes))
    assert isinstance(failed, PlanFailed)
    return failed.index, failed.reason


def test_a_pool_without_a_size_is_half_of_an_equal_share(tiny_model_path: Path) -> None:
    for one in needs(*(start(tiny_model_path, max_num_seqs=MANY) for _ in range(2))):
        assert one.kv_cache_bytes == GIB // 4
        assert one.rest_bytes == PROCESS_BYTES
        assert one.total_bytes == one.weight_bytes + GIB // 4 + PROCESS_BYTES
        assert one.config.num_tokens > 512
        assert one.config.max_model_len == 512


def test_a_pool_without_a_size_holds_the_largest_batch_twice_at_most(tiny_model_path: Path) -> None:
    (one,) = needs(start(tiny_model_path, max_num_seqs=3))
    assert one.config.num_tokens == 2 * 3 * 512
    assert one.kv_cache_bytes == one.config.num_tokens * 512, "a token has 512 bytes"


def test_a_pool_has_room_for_the_longest_request_and_never_more_than_the_weights_leave(tiny_model_path: Path) -> None:
    many = [start(tiny_model_path)] * 3000
    budget_bytes = PROCESS_BYTES + 2**20
    (one, *_) = needs(*many, budget_bytes=budget_bytes)
    assert one.config.num_tokens == 512, "a 6000th of the budget has less"
    (alone,) = needs(start(tiny_model_path), budget_bytes=budget_bytes)
    assert alone.total_bytes <= budget_bytes


def test_a_pool_has_the_size_that_the_operator_chose(tiny_model_path: Path) -> None:
    chosen, other = needs(
        start(tiny_model_path, kv_cache_memory_bytes=2**20), start(tiny_model_path, max_num_seqs=MANY)
    )
    assert chosen.kv_cache_bytes == 2**20
    assert other.kv_cache_bytes == GIB // 4


def test_a_standby_and_a_draft_model_need_memory_too(tiny_model_path: Path) -> None:
    (alone,) = needs(start(tiny_model_path, max_num_seqs=MANY))
    (guarded,) = needs(start(tiny_model_path, has_standby=True))
    assert guarded.rest_bytes == alone.rest_bytes + alone.weight_bytes + PROCESS_BYTES
    with_draft = msgspec.structs.replace(
        start(tiny_model_path, max_num_seqs=MANY), draft_model_path=str(tiny_model_path)
    )
    (drafted,) = needs(with_draft)
    assert drafted.weight_bytes == 2 * alone.weight_bytes
    assert drafted.config.num_tokens == pytest.approx(alone.config.num_tokens / 2, abs=16)
    assert drafted.config.max_draft_model_len == 512


def test_what_can_never_be_loaded_is_named(tiny_model_path: Path, tmp_path: Path) -> None:
    good = start(tiny_model_path)
    index, text = reason(good, good, budget_bytes=PROCESS_BYTES)
    assert index == 0
    assert text.endswith("more than the 250,000,000 of all models. Raise --models-memory, or set its quantization.")
    index, text = reason(good, start(tiny_model_path, kv_cache_memory_bytes=2 * GIB))
    assert (index, "Lower --kv-cache-memory." in text) == (1, True)
    index, text = reason(good, good, start(tiny_model_path, max_model_len=10_000))
    assert (index, "Lower --max-model-len." in text) == (2, True)
    assert reason(good, start(tmp_path / "none.gguf"))[0] == 1


def test_what_can_have_no_spill_file_is_named(
    tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill_plan, "spill_folder", lambda _: tmp_path / "cache" / "kv")
    other_path = tmp_path / "other.gguf"
    shutil.copy(tiny_model_path, other_path)
    one, other = (msgspec.structs.replace(start(path), kv_spill_bytes=2**20) for path in (tiny_model_path, other_path))
    assert len(needs(one, other)) == 2
    assert reason(other, one, one) == (2, "--kv-spill keeps one file for a model, and two entries have this one.")
    large = msgspec.structs.replace(other, kv_spill_bytes=2**60)
    assert reason(one, large)[0] == 1
    assert reason(one, large)[1].startswith("--kv-spill: the files of 2 models need 1,152,921,504,607,895,552 bytes")
    monkeypatch.setattr(spill_plan, "spill_folder", no_folder)
    assert reason(one) == (0, "--kv-spill: this user has no home folder")


def no_folder(_: object) -> Path:
    raise OSError("this user has no home folder")


def test_without_a_budget_it_is_a_share_of_the_free_memory(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_plan, "free_memory_bytes", lambda: 10 * GIB)
    (one,) = needs(start(tiny_model_path, max_num_seqs=MANY), budget_bytes=None)
    assert one.kv_cache_bytes == int(10 * GIB * BUDGET_SHARE) // 2


def test_a_gpu_has_its_own_memory_and_a_step_needs_some_of_it(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_plan, "choose_device", lambda _: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(memory_plan, "free_gpu_memory_bytes", lambda _: 100 * GIB)
    spilling = msgspec.structs.replace(start(tiny_model_path), kv_spill_bytes=2**20)
    assert reason(spilling)[1].startswith("--kv-spill keeps blocks of the CPU's memory; it cannot be combined")
    gpu = msgspec.structs.replace(start(tiny_model_path), dtype="bfloat16")
    (one,) = needs(gpu, budget_bytes=None)
    config = model_costs(
        tiny_model_path,
        dtype="bfloat16",
        quantization="auto",
        kv_cache_dtype="auto",
        block_size=16,
        is_gpu=True,
    ).checkpoint.config
    assert one.rest_bytes == gpu_step_bytes(config, None, 8192, 256, one.config.max_model_len)
    assert one.kv_cache_bytes == int(100 * GIB * 0.9) // 2
    assert one.config.max_num_seqs == 256


def test_the_process_answers_a_question(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    question = PlanMemory(starts=[start(tiny_model_path)], budget_bytes=GIB)
    answer = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(msgspec.msgpack.encode(question))))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=answer))
    main()
    assert msgspec.msgpack.decode(answer.getvalue(), type=MemoryPlan) == plan_memory(question)


def test_the_api_process_gets_the_plan_or_an_error_that_names_the_model(tiny_model_path: Path) -> None:
    starts = [start(tiny_model_path), start(tiny_model_path)]
    assert ask_for_plan(["a", "b"], starts, GIB).needs == [*needs(*starts)]
    starts[1] = start(tiny_model_path, max_model_len=10_000)
    with pytest.raises(ValueError, match="^b: max_model_len is 10000"):
        ask_for_plan(["a", "b"], starts, GIB)
    with pytest.raises(ValueError, match=r"The process that plans the memory ended \(exit status 3\)"):
        ask_for_plan(["a"], starts[:1], GIB, ("-c", "raise SystemExit(3)"))


def test_ranks_of_a_model_need_a_process_each_and_the_embeddings_again(tiny_model_path: Path) -> None:
    alone, ranked = needs(start(tiny_model_path), msgspec.structs.replace(start(tiny_model_path), num_ranks=2))
    assert ranked.rest_bytes == 2 * PROCESS_BYTES
    assert ranked.config.num_ranks == 2
    assert alone.weight_bytes < ranked.weight_bytes < 2 * alone.weight_bytes
    assert (
        "can be split between at most 4 ranks"
        in reason(msgspec.structs.replace(start(tiny_model_path), num_ranks=9))[1]
    )


def test_uneven_ranks_leave_memory_free() -> None:
    assert usable_bytes([(3000, [0, 1, 2])], [2, 2, 2]) == 3000
    assert usable_bytes([(3000, [0, 1])], [4, 2]) == 2250


def test_the_host_with_the_least_memory_for_its_ranks_sets_the_size_of_all_pools() -> None:
    assert usable_bytes([(3000, [0]), (3000, [1])], [2, 2]) == 6000
    assert usable_bytes([(3000, [0]), (1000, [1])], [2, 2]) == 2000
    assert usable_bytes([(3000, [0]), (1000, [1, 2])], [2, 2, 1]) == 1250
