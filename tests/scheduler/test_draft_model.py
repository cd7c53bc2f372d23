"""Draft tokens from a draft model: the same bits, its KV cache in step with the sequences, and its failures."""

import random
from collections.abc import Sequence as Seq
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor
from typing_extensions import override

from caravan.model.cpu.build import load_kernels
from caravan.model.cpu.llama import CpuLlama
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_cache import KVCache
from caravan.model.llama import Llama
from caravan.scheduler.draft_policy import DraftCandidate, DraftPolicy, DraftShare
from caravan.scheduler.engine import Engine
from caravan.scheduler.messages import Request, StepStats
from caravan.scheduler.sequence import Sequence
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import model_in, random_prompt
from tests.support.tiny_llama import Transcript, run_to_end, tiny_engine, tiny_llama

KIND = "none"  # kernels in bfloat16
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"temperature": 0.0, "repetition_penalty": 1.1, "num_logprobs": 3},
    {"temperature": 0.4, "top_p": 0.8, "top_k": 20, "num_logprobs": 0},
    {"temperature": 0.0, "min_tokens": 9, "stop_token_ids": (5, 50, 111, 200)},
    {"temperature": 0.0, "num_prompt_logprobs": 1},
]


class ArbitraryPolicy(DraftPolicy):
    """Drafts at random, whatever it costs; a text is caught up in pieces of any size."""

    def __init__(self, seed: int, *, is_preferred: bool = True) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._is_preferred = is_preferred

    @override
    def chance(self, sequence: Sequence) -> float:
        return 1.0 if self._is_preferred else self._random.random()

    @override
    def choose(
        self, candidates: Seq[DraftCandidate], num_rows: int, max_rows: int, max_run_rows: int
    ) -> list[DraftShare]:
        shares = []
        for candidate in candidates:
            num_tokens = min(candidate.num_missing_tokens, self._random.choice([0, 1, 7, 1000]), max_run_rows)
            is_caught_up = num_tokens == candidate.num_missing_tokens
            wanted = self._random.choice([0, 1, 3, 8]) if is_caught_up else 0
            num_draft_tokens = min(wanted, candidate.max_draft_tokens, max_rows - num_rows)
            num_rows += num_draft_tokens
            max_run_rows -= num_tokens
            shares.append(DraftShare(num_tokens, num_draft_tokens))
        return shares


def engine_of(draft: Llama | None = None) -> Engine:
    return tiny_engine(model_in(KIND), draft=draft, block_size=16)


def with_policy(engine: Engine, policy: DraftPolicy) -> Engine:
    assert engine.scheduler.model_drafts is not None
    engine.scheduler.model_drafts.policy = policy
    return engine


def run(
    engine: Engine, requests: list[Request], arrive_every: int = 0
) -> tuple[dict[int, Transcript], list[StepStats]]:
    stats: list[StepStats] = []
    return run_to_end(engine, requests, arrive_every, lambda step: stats.append(step.stats)), stats


def counts(stats: list[StepStats]) -> tuple[int, int]:
    """Return how many tokens the draft model drafted, and how many of them were accepted."""
    return sum(one.num_model_draft_tokens for one in stats), sum(one.num_model_accepted_tokens for one in stats)


@st.composite
def workloads(draw: st.DrawFn, sampling: list[dict[str, Any]]) -> tuple[list[Request], dict[str, Any]]:
    """Return requests, some with the same prefix, and limits of an engine in which they may preempt each other."""
    requests = []
    shared = random_prompt(99, 40)
    for request_id in range(draw(st.integers(1, 5))):
        prompt = [
            *shared[: draw(st.sampled_from([0, 16, 33, 40]))],
            *random_prompt(request_id, draw(st.integers(1, 9))),
        ]
        params = {"seed": request_id, "max_tokens": draw(st.integers(1, 50))} | draw(st.sampled_from(sampling))
        group = draw(st.sampled_from([0, 7])) if prompt[:40] == shared else 0
        requests.append(make_request(request_id, prompt, group=group, **params))
    limits: dict[str, Any] = {
        "block_size": 16,
        "max_model_len": 112,
        "num_blocks": draw(st.sampled_from([8, 14, 64])),
        "max_batch_tokens": draw(st.sampled_from([3, 16, 256])),
    }
    return requests, limits


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "int8"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_answers_have_the_same_bits_with_any_draft_model(draw: st.DataObject, kind: str) -> None:
    requests, limits = draw.draw(workloads(SAMPLING))
    plain, _ = run(tiny_engine(model_in(kind), **limits), requests)
    draft = model_in(kind) if draw.draw(st.booleans()) else model_in(kind, num_layers=1)
    limits["max_draft_model_len"] = draw.draw(st.sampled_from([20, 50, 112]))
    policy = ArbitraryPolicy(draw.draw(st.integers(0, 1000)), is_preferred=draw.draw(st.booleans()))
    engine = with_policy(tiny_engine(model_in(kind), draft=draft, **limits), policy)
    transcripts, stats = run(engine, requests, draw.draw(st.integers(0, 3)))
    assert transcripts == plain
    num_drafted, num_accepted = counts(stats)
    event(f"accepted {num_accepted > 0}, rejected {num_drafted > num_accepted}")
    event(f"preempted {sum(one.num_preemptions for one in stats) > 0}")


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_a_draft_model_that_is_the_target_is_always_right(draw: st.DataObject) -> None:
    """Its keys and values are those of the text, whatever was shared, preempted, rejected or left out before."""
    requests, limits = draw.draw(workloads([{"temperature": 0.0}]))
    policy = ArbitraryPolicy(draw.draw(st.integers(0, 1000)), is_preferred=draw.draw(st.booleans()))
    engine = with_policy(tiny_engine(model_in(KIND), draft=model_in(KIND), **limits), policy)
    _, stats = run(engine, requests, draw.draw(st.integers(0, 3)))
    num_drafted, num_accepted = counts(stats)
    assert num_accepted == num_drafted
    event(f"drafted {num_drafted > 0}")
    event(f"preempted {sum(one.num_preemptions for one in stats) > 0}")
    event(f"prefix hit {sum(one.prefix_cache_hits for one in stats) > 0}")


def test_a_prefix_that_is_shared_is_computed_for_one_sequence_and_as_a_whole() -> None:
    """Pieces of one token, for sequences of which each would overwrite what the other has computed."""

    class PieceByPiece(EagerPolicy):
        @override
        def choose(
            self, candidates: Seq[DraftCandidate], num_rows: int, max_rows: int, max_run_rows: int
        ) -> list[DraftShare]:
            whole = super().choose(candidates, num_rows, max_rows, max_run_rows)
            return [DraftShare(11) if one.num_rows > 11 else one for one in whole]

    draft = counting_model()
    engine = with_policy(engine_of(draft), PieceByPiece())
    prompt = random_prompt(1, 64)
    requests = [make_request(number, [*prompt, number], max_tokens=40) for number in range(4)]
    _, stats = run(engine, requests)
    assert counts(stats)[0] == counts(stats)[1] > 0


class CountingModel(CpuLlama):
    """A model that counts the tokens it computes."""

    num_tokens = 0

    @override
    def hidden_states(self, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        self.num_tokens += len(batch.token_ids)
        return super().hidden_states(batch, kv_cache)


def counting_model(kind: type[CountingModel] = CountingModel) -> CountingModel:
    model = tiny_llama(dtype=torch.bfloat16, make_model=lambda config: kind(config, load_kernels(), "none"))
    assert isinstance(model, CountingModel)
    return model


class EagerPolicy(DraftPolicy):
    """Drafts three tokens for each sequence, whatever it costs."""

    @override
    def chance(self, sequence: Sequence) -> float:
        return 1.0

    @override
    def choose(
        self, candidates: Seq[DraftCandidate], num_rows: int, max_rows: int, max_run_rows: int
    ) -> list[DraftShare]:
        return [DraftShare(one.num_missing_tokens, min(3, one.max_draft_tokens)) for one in candidates]


def test_a_right_draft_model_saves_steps_and_computes_each_token_once() -> None:
    draft = counting_model()
    engine = with_policy(engine_of(draft), EagerPolicy())
    transcripts, stats = run(engine, [make_request(0, random_prompt(1, 20), max_tokens=41)])
    assert len(stats) == 11  # one for each four tokens
    assert counts(stats) == (30, 30)
    assert stats[3].draft_tokens_by_source() == {"text": (0, 0), "answers": (0, 0), "model": (3, 3)}
    assert draft.num_tokens == 20 + 41 - 3  # all but the last draft token of the last step and the tokens after it
    assert len(transcripts[0].token_ids) == 41
    assert all(one.draft_model_seconds > 0 for one in stats[:-1])


def test_the_draft_model_shares_prefixes_as_the_target_does() -> None:
    draft = counting_model()
    engine = with_policy(engine_of(draft), EagerPolicy())
    prompt = random_prompt(1, 64)
    run(engine, [make_request(0, [*prompt, 7], max_tokens=9)])
    draft.num_tokens = 0
    _, stats = run(engine, [make_request(1, [*prompt, 8], max_tokens=9)])
    assert stats[0].prefix_cache_hits == 64
    assert draft.num_tokens < 12
    assert counts(stats)[0] == counts(stats)[1] > 0


def test_a_prefix_that_the_draft_model_has_not_computed_is_computed_later() -> None:
    draft = counting_model()
    engine = engine_of(draft)
    prompt = random_prompt(1, 64)
    run(engine, [make_request(0, [*prompt, 7], max_tokens=1)])  # one token needs no draft
    assert draft.num_tokens == 0
    _, stats = run(with_policy(engine, EagerPolicy()), [make_request(1, [*prompt, 8], max_tokens=9)])
    assert stats[0].prefix_cache_hits == 64
    assert draft.num_tokens > 64
    assert counts(stats)[0] == counts(stats)[1] > 0


def test_a_draft_model_that_fails_is_left_out_and_no_request_fails(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenModel(CountingModel):
        @override
        def hidden_states(self, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
            if self.num_tokens > 30:
                raise RuntimeError("broken")
            return super().hidden_states(batch, kv_cache)

    draft = counting_model(BrokenModel)
    requests = [make_request(number, random_prompt(number, 20), max_tokens=30) for number in range(2)]
    plain, _ = run(engine_of(), requests)
    transcripts, _ = run(with_policy(engine_of(draft), EagerPolicy()), requests)
    assert transcripts == plain
    assert caplog.text.count("The draft model failed") == 1


def test_a_draft_model_whose_numbers_are_not_finite_changes_nothing() -> None:
    draft = counting_model()
    draft.norm.weight = torch.nn.Parameter(torch.full_like(draft.norm.weight, torch.nan), requires_grad=False)
    requests = [make_request(number, random_prompt(number, 20), max_tokens=30) for number in range(2)]
    plain, _ = run(engine_of(), requests)
    transcripts, stats = run(with_policy(engine_of(draft), EagerPolicy()), requests)
    assert transcripts == plain
    assert counts(stats)[0] > 0


def test_an_aborted_request_leaves_no_block_and_later_ones_draft_rightly() -> None:
    engine = with_policy(engine_of(model_in(KIND)), EagerPolicy())
    engine.add(make_request(0, random_prompt(1, 20), max_tokens=60))
    for _ in range(5):
        engine.step()
    engine.scheduler.abort(0)
    _, stats = run(engine, [make_request(1, random_prompt(2, 20), max_tokens=30)])
    assert counts(stats)[0] == counts(stats)[1] > 0


def test_a_request_resumed_after_its_first_tokens_ends_the_same() -> None:
    request = make_request(0, random_prompt(1, 20), max_tokens=30, temperature=0.8, seed=3)
    plain, _ = run(engine_of(), [request])
    output = plain[0].token_ids[:11]
    resumed = make_request(0, random_prompt(1, 20), max_tokens=30, temperature=0.8, seed=3, output=output)
    engine = with_policy(engine_of(model_in(KIND)), EagerPolicy())
    transcripts, stats = run(engine, [resumed])
    assert output + transcripts[0].token_ids == plain[0].token_ids
    assert counts(stats)[0] > 0
