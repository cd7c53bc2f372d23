"""Errors of a GPU are the fault of no request: memory makes the pool smaller, a fault of the device ends the engine."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from caravan.model.kv_cache import KVCache
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.engine import Engine
from caravan.scheduler.faults import is_device_fault, is_fatal, is_out_of_memory
from caravan.scheduler.memory_shortage import explained_shortage, step_with_room
from caravan.scheduler.messages import Request
from caravan.scheduler.overlapped_engine import OverlappedEngine
from caravan.scheduler.smaller_pool import smaller_config
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import engine_of, random_prompt
from tests.support.tiny_llama import Transcript, run_to_end

FORMS = ["float32", "float32, overlapped"]
LIMITS: dict[str, Any] = {"max_model_len": 64, "block_size": 16}
FAULTS = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
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
def test_the_old_pool_is_freed_before_the_new_one_is_allocated(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(form, **LIMITS)
    for request in requests():
        engine.add(request)
    for _ in range(4):
        engine.step()
    old = weakref.ref(engine.kv_cache)
    make, were_freed = engine._make_kv_cache, list[bool]()

    def observed(kv_dtype: torch.dtype) -> KVCache:
        were_freed.append(old() is None)
        return make(kv_dtype)

    monkeypatch.setattr(engine, "_make_kv_cache", observed)
    gc.disable()  # it does not come in time
    try:
        engine.shrink_pool()
    finally:
        gc.enable()
    assert were_freed == [True]


def test_a_pool_that_cannot_shrink_ends_the_engine_with_the_options_that_help() -> None:
    config = EngineConfig(num_blocks=33, block_size=16, max_model_len=480)
    with pytest.raises(MemoryError, match=r"KV pool of 528 tokens .* Lower --max-batch-tokens"):
        smaller_config(config)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("error", FAULTS)
def test_a_fault_of_the_device_ends_the_engine_and_no_request_is_run_again(form: str, error: Exception) -> None:
    engine = engine_of(form, **LIMITS)
    rows = break_model(engine, error, lambda number: number >= 4)
    with pytest.raises(type(error), match="CUDA error"):
        run_to_end(engine, requests())
    assert len(rows) == 4


@pytest.mark.parametrize("form", FORMS)
def test_another_error_of_one_run_ends_no_request(form: str) -> None:
    engine = engine_of(form, **LIMITS)
    break_model(engine, RuntimeError("shapes differ"), {4}.__contains__)
    assert run_to_end(engine, requests()) == run_to_end(engine_of("float32", **LIMITS), requests())


def test_a_start_without_enough_memory_names_the_options_that_help() -> None:
    sentence = r"too little memory for the KV pool. Lower --kv-cache-memory, .* 2.00 GiB"
    with pytest.raises(ValueError, match=sentence), explained_shortage("the KV pool"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_errors_are_recognised() -> None:
    out_of_memory = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert is_out_of_memory(out_of_memory)
    assert not is_device_fault(out_of_memory)
    assert all(is_device_fault(error) and not is_out_of_memory(error) for error in FAULTS)
    assert all(map(is_fatal, [*FAULTS, out_of_memory, MemoryError()]))
    assert not any(map(is_fatal, [RuntimeError("shapes differ"), IndexError("CUDA error"), ValueError()]))
