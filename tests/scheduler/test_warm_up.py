"""What a GPU does before the first request, on a device that is none."""

from typing import Any

import pytest
import torch

from caravan.model.llama import Llama
from caravan.model.sampling.sample import Sample
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.overlapped_engine import OverlappedEngine
from caravan.scheduler.sampling_launch import HostSampler
from caravan.scheduler.step_graph import ladder
from caravan.scheduler.warm_up import most_sequences, sequences, step_sizes
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import engine_of, model_in, random_prompt
from tests.support.fake_device import FakeDevice
from tests.support.fake_graph import FakeGraphs, MaskedAttention
from tests.support.tiny_llama import run_to_end, tiny_engine, tiny_llama

LIMITS: dict[str, Any] = {"max_model_len": 96, "block_size": 16, "max_num_seqs": 8, "max_batch_tokens": 300}


def engine(**changes: Any) -> OverlappedEngine:
    model = tiny_llama(make_model=lambda config: Llama(config, MaskedAttention()))
    made = tiny_engine(model, fake_device=FakeDevice(), **LIMITS | changes)
    assert isinstance(made, OverlappedEngine)
    return made


def test_steps_of_all_sizes_are_run_and_the_largest_has_all_tokens_that_a_step_can_have() -> None:
    assert list(step_sizes(300)) == [300, 150, 75, 37, 18, 9, 4, 2, 1]
    config = EngineConfig(num_blocks=64, **LIMITS)
    assert [one.num_tokens for one in sequences(300, 96, config)] == [96, 96, 96, 12]
    assert [len(one.block_table) for one in sequences(300, 96, config)] == [6, 6, 6, 1]
    assert len(sequences(300, 7, config)) == 8  # no step has more sequences
    assert [one.num_tokens for one in most_sequences(config)] == [1] * 7 + [96]
    few = EngineConfig(num_blocks=64, **LIMITS | {"max_batch_tokens": 20})
    assert [one.num_tokens for one in most_sequences(few)] == [1] * 7 + [13]


def test_a_warm_up_records_decode_steps_and_runs_prompts_of_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = FakeGraphs()
    made = engine(capture=graphs.capture)
    sizes: list[int] = []
    original = made.model.hidden_states

    def hidden_states(batch: Any, kv_cache: Any) -> torch.Tensor:
        sizes.append(len(batch.token_ids))
        states: torch.Tensor = original(batch, kv_cache)
        return states

    monkeypatch.setattr(made.model, "hidden_states", hidden_states)
    made.warm_up()
    assert graphs.num_captures == len(ladder(8))
    assert set(sizes) == {*ladder(8), 7 + 96, *step_sizes(300)}


def test_a_warm_up_samples_a_row_that_its_mask_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    masks: list[Any] = []
    original = HostSampler.sample

    def sample(self: HostSampler, logits: Any, rows: Any, find_masks: Any = None) -> list[Sample | None]:
        def observed(places: list[int]) -> Any:
            masks.append(find_masks(places))
            return masks[-1]

        return original(self, logits, rows, observed)

    monkeypatch.setattr(HostSampler, "sample", sample)
    made.warm_up()
    assert [mask.shape for mask in masks] == [(1, 38)]  # 300 tokens


@pytest.mark.parametrize("has_draft", [False, True])
def test_a_warm_up_changes_no_answer(has_draft: bool) -> None:
    requests = [make_request(i, random_prompt(i, 5 + 20 * i), max_tokens=9, seed=i) for i in range(4)]
    model = model_in("float32")
    drafts: dict[str, Any] = {"draft": model, "max_draft_model_len": 96} if has_draft else {}
    made = tiny_engine(model, fake_device=FakeDevice(), **LIMITS | drafts)
    assert isinstance(made, OverlappedEngine)
    made.warm_up()
    assert run_to_end(made, requests) == run_to_end(engine_of("float32", **LIMITS), requests)


def test_a_warm_up_runs_the_draft_model_with_as_many_tokens_as_it_can_get(monkeypatch: pytest.MonkeyPatch) -> None:
    draft = tiny_llama(seed=1)
    sizes: list[int] = []
    original = draft.hidden_states

    def hidden_states(batch: Any, kv_cache: Any) -> torch.Tensor:
        sizes.append(len(batch.token_ids))
        states: torch.Tensor = original(batch, kv_cache)
        return states

    monkeypatch.setattr(draft, "hidden_states", hidden_states)
    engine(draft=draft, max_draft_model_len=50).warm_up()
    assert sizes == list(step_sizes(300))
