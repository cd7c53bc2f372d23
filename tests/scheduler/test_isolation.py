"""A request that fails in the middle of a batch changes no bit of the others."""

from typing import Any

import pytest
import torch

from caravan.model.sampling.sample import Sample
from caravan.scheduler.engine import Engine
from caravan.scheduler.messages import Request
from caravan.scheduler.prompt_result import PromptResult
from caravan.scheduler.sequence import ScheduledSequence
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import engine_of, random_prompt
from tests.support.tiny_llama import Transcript, run_to_end

BAD = 3  # the request that fails
Result = tuple[list[Sample | None], dict[int, PromptResult]]


class FaultyEngine(Engine):
    """An engine that fails with one request after its second token."""

    def poison(self, fault: str) -> None:
        self.fault = fault
        self.poisoned_blocks: set[int] = set()

    def compute(self, plan: list[ScheduledSequence]) -> Result:
        bad = [s for s in plan if s.sequence.request.request_id == BAD and s.sequence.num_output_tokens >= 2]
        if bad and self.fault == "exception":
            raise IndexError("a defect")
        if bad and self.fault == "nan":
            block = bad[0].sequence.block_table[-1]
            self.poisoned_blocks.add(block)
            for pool in self.kv_cache.keys + self.kv_cache.values:
                pool[block] = torch.nan
        if bad and self.fault == "memory":
            raise MemoryError
        return super().compute(plan)


def requests() -> list[Request]:
    stem = random_prompt(1, 40)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0, "num_logprobs": 2},
        {"temperature": 1.0, "seed": 5, "num_prompt_logprobs": 1},
        {"temperature": 0.8, "seed": 6, "top_p": 0.9},
        {"temperature": 0.0},
    ]
    return [make_request(index, [*stem, index], max_tokens=12, **kinds[index % 4]) for index in range(6)]


def faulty(kind: str, fault: str) -> FaultyEngine:
    engine = engine_of(kind, max_model_len=64, block_size=16)
    engine.__class__ = FaultyEngine
    assert isinstance(engine, FaultyEngine)
    engine.poison(fault)
    return engine


@pytest.mark.parametrize("kind", ["float32", "none", "int8"])
@pytest.mark.parametrize("fault", ["exception", "nan"])
def test_threat_18_exactly_one_request_fails_and_its_neighbours_keep_every_bit(kind: str, fault: str) -> None:
    clean = run_to_end(engine_of(kind, max_model_len=64, block_size=16), requests())
    engine = faulty(kind, fault)
    poisoned = run_to_end(engine, requests())
    assert poisoned[BAD].finish_reason == "error"
    assert poisoned[BAD].token_ids == clean[BAD].token_ids[:2]
    assert without(poisoned, BAD) == without(clean, BAD)
    assert engine.scheduler.pool.num_free == engine.config.num_blocks
    for block in engine.poisoned_blocks:
        for pool in engine.kv_cache.keys + engine.kv_cache.values:
            assert not pool[block].isnan().any()
    engine.poison("none")
    assert run_to_end(engine, requests()) == clean  # none of its blocks was cached


def without(transcripts: dict[int, Transcript], request_id: int) -> dict[int, Transcript]:
    return {key: transcript for key, transcript in transcripts.items() if key != request_id}


def test_a_memory_error_ends_the_engine_and_no_single_request() -> None:
    with pytest.raises(MemoryError):
        run_to_end(faulty("float32", "memory"), requests())


def test_a_step_that_fails_once_changes_no_answer() -> None:
    engine = engine_of("float32", max_model_len=64)
    compute, failures = engine.compute, iter([True])

    def once(plan: list[ScheduledSequence]) -> Result:
        if len(plan) > 1 and next(failures, False):
            raise RuntimeError("once")
        return compute(plan)

    engine.compute = once  # type: ignore[method-assign]  # one step that fails
    assert run_to_end(engine, requests()) == run_to_end(engine_of("float32", max_model_len=64), requests())
