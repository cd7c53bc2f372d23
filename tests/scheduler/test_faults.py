"""Errors of a GPU are the fault of no request: memory makes the pool smaller, a fault of the device ends the engine."""

import gc
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from caravan.model.kv_cache import KVCache
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.device_step import DeviceSteps
from caravan.scheduler.engine import Engine
from caravan.scheduler.faults import is_device_fault, is_fatal, is_out_of_memory
from caravan.scheduler.memory_shortage import explained_shortage, step_with_room
from caravan.scheduler.messages import Request
from caravan.scheduler.overlapped_engine import OverlappedEngine
from caravan.scheduler.smaller_pool import smaller_config
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import engine_of, model_in, random_prompt
from tests.support.fake_device import FakeDevice
from tests.support.tiny_llama import Transcript, run_to_end, tiny_engine

FORMS = ["float32", "float32, overlapped"]
LIMITS: dict[str, Any] = {"max_model_len": 64, "block_size": 16}
# What Triton raises for a kernel that needs more than the GPU has.
OutOfResources = type("OutOfResources", (Exception,), {"__module__": "triton.runtime.errors"})
FAULTS = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    OutOfResources("out of resource: shared memory"),
]
SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


def requests() -> list[Request]:
    return [make_request(i, random_prompt(i, 12 + i), max_tokens=9, temperature=0.7, seed=i) for i in range(5)]


def break_model(engine: Engine, error: Exception, fails: Callable[[int], bool]) -> list[int]:
    """Let a model fail in the runs for whose number `fails` holds, and return a list that gets the rows of each run."""
    original = engine.model.hidden_states
    rows: list[int] = []

    def hidden_states(batch: Any, kv_cache: Any) -> torch.Tensor:
        rows.append(len(batch.token_ids))
        if fails(len(rows)):
            raise error
        states: torch.Tensor = original(batch, kv_cache)
        return states

    object.__setattr__(engine, "model", _Changed(engine.model, hidden_states))
    if isinstance(engine, OverlappedEngine):
        engine.device_steps._model = engine.model
    return rows


class _Changed:
    """A model with another hidden_states."""

    def __init__(self, model: Any, hidden_states: Any) -> None:
        self._model, self.hidden_states = model, hidden_states

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def run_with_room(engine: Engine) -> dict[int, Transcript]:
    """Return all transcripts of an engine whose pool may shrink."""
    transcripts = {request.request_id: Transcript() for request in requests()}
    for request in requests():
        engine.add(request)
    while engine.has_work:
        for output in step_with_room(engine).outputs:
            transcripts[output.request_id].take(output)
        engine.scheduler.pool.check()
    assert engine.scheduler.pool.num_free == engine.config.num_blocks
    return transcripts


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("failing", [{1}, {2}, {5}, {6, 9}, {3, 7}])
def test_too_little_memory_shrinks_the_pool_and_changes_no_answer(form: str, failing: set[int]) -> None:
    engine = engine_of(form, **LIMITS)
    num_blocks = engine.config.num_blocks
    break_model(engine, torch.OutOfMemoryError("CUDA out of memory."), failing.__contains__)
    assert run_with_room(engine) == run_to_end(engine_of("float32", **LIMITS), requests())
    for _ in failing:
        num_blocks = int(0.9 * num_blocks)
    assert engine.config.num_blocks == engine.scheduler.pool.num_blocks == num_blocks
    assert len(engine.kv_cache.keys[0]) == num_blocks + (form != "float32")  # one block is for padding rows


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("error", SHORTAGES)
def test_every_error_of_a_full_memory_shrinks_the_pool(form: str, error: Exception) -> None:
    engine = engine_of(form, **LIMITS)
    break_model(engine, error, {3}.__contains__)
    assert run_with_room(engine) == run_to_end(engine_of("float32", **LIMITS), requests())
    assert engine.config.num_blocks == int(0.9 * 64)


@pytest.mark.parametrize("is_overlapped", [False, True])
def test_the_old_pools_are_freed_before_the_new_ones_are_allocated(
    is_overlapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_with_draft(is_overlapped=is_overlapped)
    for request in requests():
        engine.add(request)
    for _ in range(4):
        engine.step()
    old = [weakref.ref(pool) for kv_cache in engine.kv_caches for pool in kv_cache.keys + kv_cache.values]
    events: list[str] = []
    allocate = KVCache.allocate

    def observed(kv_cache: KVCache, num_blocks: int) -> None:
        events.append(f"allocate, {sum(one() is not None for one in old)} left")
        allocate(kv_cache, num_blocks)

    monkeypatch.setattr(KVCache, "allocate", observed)
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: events.append(f"empty, {sum(one() is not None for one in old)} left")
    )
    gc.disable()  # it does not come in time
    try:
        engine.shrink_pool()
    finally:
        gc.enable()
    assert events == ["empty, 0 left", "allocate, 0 left", "allocate, 0 left"]


def engine_with_draft(*, is_overlapped: bool) -> Engine:
    return tiny_engine(
        model_in("float32"),
        draft=model_in("float32"),
        fake_device=FakeDevice() if is_overlapped else None,
        **LIMITS,
    )


@pytest.mark.parametrize("is_overlapped", [False, True])
def test_the_pool_of_a_draft_model_shrinks_too_and_changes_no_answer(is_overlapped: bool) -> None:
    engine = engine_with_draft(is_overlapped=is_overlapped)
    break_model(engine, SHORTAGES[0], {5}.__contains__)
    assert run_with_room(engine) == run_to_end(engine_of("float32", **LIMITS), requests())
    sizes = [len(kv_cache.keys[0]) for kv_cache in engine.kv_caches]
    assert sizes == [57 + is_overlapped, 57]
    assert engine.scheduler.model_drafts is not None


def test_a_draft_model_that_was_given_up_is_not_used_after_the_pool_has_shrunk() -> None:
    engine = engine_with_draft(is_overlapped=True)
    assert engine.scheduler.draft_tokens is not None
    engine.scheduler.draft_tokens.model = None  # as after it has failed
    engine.shrink_pool()
    assert engine.scheduler.model_drafts is None
    assert run_to_end(engine, requests()) == run_to_end(engine_of("float32", **LIMITS), requests())


def test_a_pool_shrinks_until_there_is_memory_for_the_steps_of_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("float32, overlapped", **LIMITS)
    assert isinstance(engine, OverlappedEngine)
    engine.warm_up()
    run, num_calls = DeviceSteps.run, iter(range(1, 1000))

    def failing(steps: DeviceSteps, staged: Any) -> Any:
        if next(num_calls) in (1, 5):
            raise SHORTAGES[2]
        return run(steps, staged)

    monkeypatch.setattr(DeviceSteps, "run", failing)
    engine.shrink_pool()
    assert engine.config.num_blocks == int(0.9 * int(0.9 * int(0.9 * 64)))
    assert run_to_end(engine, requests()) == run_to_end(engine_of("float32", **LIMITS), requests())


def test_another_error_of_the_warm_up_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("float32, overlapped", **LIMITS)
    assert isinstance(engine, OverlappedEngine)
    engine.warm_up()

    def failing(steps: DeviceSteps) -> None:
        raise FAULTS[0]

    monkeypatch.setattr(DeviceSteps, "warm_up", failing)
    with pytest.raises(type(FAULTS[0]), match="illegal memory access"):
        engine.shrink_pool()


def test_a_pool_that_cannot_shrink_ends_the_engine_with_the_options_that_help() -> None:
    config = EngineConfig(num_blocks=33, block_size=16, max_model_len=480)
    with pytest.raises(MemoryError, match=r"KV pool of 528 tokens .* Lower --max-batch-tokens"):
        smaller_config(config)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("error", FAULTS)
def test_a_fault_of_the_device_ends_the_engine_and_no_request_is_run_again(form: str, error: Exception) -> None:
    engine = engine_of(form, **LIMITS)
    rows = break_model(engine, error, lambda number: number >= 4)
    with pytest.raises(type(error), match=re.escape(str(error))):
        run_with_room(engine)
    assert len(rows) == 4


@pytest.mark.parametrize("form", FORMS)
def test_another_error_of_one_run_ends_no_request(form: str) -> None:
    engine = engine_of(form, **LIMITS)
    break_model(engine, RuntimeError("shapes differ"), {4}.__contains__)
    assert run_to_end(engine, requests()) == run_to_end(engine_of("float32", **LIMITS), requests())


def test_a_start_without_enough_memory_names_the_options_that_help() -> None:
    for error in SHORTAGES:
        sentence = rf"too little memory for the KV pool. Lower --kv-cache-memory, .* {re.escape(str(error))}"
        with pytest.raises(ValueError, match=sentence), explained_shortage("the KV pool"):
            raise error
    with pytest.raises(type(FAULTS[0]), match="illegal memory access"), explained_shortage("the KV pool"):
        raise FAULTS[0]


def test_errors_are_recognised() -> None:
    assert all(is_out_of_memory(error) and not is_device_fault(error) for error in SHORTAGES)
    assert all(is_device_fault(error) and not is_out_of_memory(error) for error in FAULTS)
    assert all(map(is_fatal, [*FAULTS, *SHORTAGES, MemoryError()]))
    assert not any(map(is_fatal, [RuntimeError("shapes differ"), IndexError("CUDA error"), ValueError()]))
