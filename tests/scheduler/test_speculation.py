"""Draft tokens: what is drafted, when it pays, and that only the number of steps changes."""

from collections.abc import Callable
from itertools import chain
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from caravan.model.sampling.sample import Sample
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import StepOutput, StepStats
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.sequence import ScheduledSequence
from caravan.scheduler.speculation import MAX_DRAFT_TOKENS, MAX_ROWS, PromptLookup, allocate_draft_tokens, pays
from caravan.scheduler.step_result import StepResult
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import model_in
from tests.support.tiny_llama import Transcript, run_to_end, tiny_engine

PERIOD = [1, 2, 3, 4]


def lookup_of(token_ids: list[int], num_prompt_tokens: int = 0) -> PromptLookup:
    lookup = PromptLookup(num_prompt_tokens)
    lookup.observe(token_ids)
    return lookup


def speculating(**limits: int) -> Scheduler:
    defaults: dict[str, Any] = {
        "num_blocks": 16,
        "block_size": 4,
        "max_batch_tokens": 64,
        "max_num_seqs": 4,
        "max_model_len": 64,
    }
    return Scheduler(EngineConfig(**defaults | limits, speculation="on"))


def after_period(token_ids: list[int]) -> int:
    """The model of these tests, which counts from 1 to 4 for ever."""
    return token_ids[-1] % 4 + 1


def step(scheduler: Scheduler, next_token: Callable[[list[int]], int] = after_period) -> StepOutput:
    plan = scheduler.schedule()
    return scheduler.commit(plan, StepResult([*answers(plan, next_token)]))


def answers(plan: list[ScheduledSequence], next_token: Callable[[list[int]], int] = after_period) -> list[Sample]:
    return [
        Sample(next_token([*s.sequence.token_ids, *s.draft_token_ids[:count]]))
        for s in plan
        for count in range(s.num_logits)
    ]


def test_the_draft_is_the_text_that_followed_the_last_tokens_before() -> None:
    text = [5, 6, 7, 8, 9, 1, 5, 6, 7]
    assert lookup_of(text).draft(text, 3) == (8, 9, 1)


def test_the_longer_of_two_matches_is_followed() -> None:
    text = [5, 6, 7, 8, 0, 6, 7, 9, 0, 5, 6, 7]
    assert lookup_of(text).draft(text, 1) == (8,)  # after 5 6 7, not after the later 6 7


def test_the_draft_of_a_repeating_text_repeats_it() -> None:
    text = [9, 1, 2, 1, 2]
    assert lookup_of(text).draft(text, 5) == (1, 2, 1, 2, 1)


def test_a_text_without_repetition_has_no_draft() -> None:
    assert lookup_of([1, 2, 3, 4, 5, 2, 7]).acceptance == 0
    assert lookup_of([1]).acceptance == 0


@given(st.lists(st.integers(0, 3), max_size=60), st.data())
@settings(deadline=None)
def test_a_text_observed_in_pieces_gives_the_same_draft(text: list[int], draw: st.DataObject) -> None:
    at_once, piecewise = lookup_of(text), PromptLookup(0)
    length = 0
    while length < len(text):
        length = draw.draw(st.integers(length + 1, len(text)))
        piecewise.observe(text[:length])
    assert vars(piecewise) == vars(at_once)


def test_right_drafts_in_the_output_raise_the_estimate_and_wrong_ones_lower_it() -> None:
    assert lookup_of(PERIOD * 20).next_acceptance > 0.95
    wrong = lookup_of([t for number in range(3, 60) for t in (1, 2, number)])
    assert wrong.first_acceptance < 0.05
    assert lookup_of(PERIOD * 20, num_prompt_tokens=80).next_acceptance == PromptLookup(0).next_acceptance


def test_more_rows_require_a_better_chance() -> None:
    assert pays(0.1, 1)
    assert not pays(0.1, 8)
    assert pays(0.8, 32)
    assert not pays(0.6, 32)


def test_draft_tokens_go_to_the_likeliest_sequences_as_long_as_they_pay() -> None:
    sure, doubtful = lookup_of(PERIOD * 20), lookup_of([t for number in range(3, 60) for t in (1, 2, number)] + [1, 2])
    assert allocate_draft_tokens([doubtful, sure], [100, 100], 2) == [0, MAX_DRAFT_TOKENS]
    assert allocate_draft_tokens([doubtful, sure], [100, 3], 2) == [0, 3]
    assert allocate_draft_tokens([sure] * 32, [100] * 32, MAX_ROWS) == [0] * 32
    assert sum(allocate_draft_tokens([sure] * 8, [100] * 8, 8)) == MAX_ROWS - 8
    assert sum(allocate_draft_tokens([sure], [100], 1, max_rows=4)) == 3


def test_a_step_gives_every_right_draft_token_and_one_more() -> None:
    scheduler = speculating()
    scheduler.add(make_request(0, PERIOD * 3, max_tokens=12))
    outputs = []
    while scheduler.has_work:
        output = step(scheduler)
        scheduler.pool.check()
        outputs.append(output.outputs[0].token_ids)
        assert len(outputs[-1]) == 1 + output.stats.num_accepted_tokens
    assert list(chain(*outputs)) == PERIOD * 3
    assert len(outputs) < 6


def test_a_step_with_wrong_draft_tokens_gives_one_token() -> None:
    scheduler = speculating()
    scheduler.add(make_request(0, PERIOD * 3, max_tokens=4))
    output = step(scheduler, lambda text: 9)
    while not output.stats.num_draft_tokens:
        output = step(scheduler, lambda text: 9)
    assert output.stats.num_accepted_tokens == 0
    assert output.outputs[0].token_ids == [9]


@pytest.mark.parametrize(
    ("params", "limits", "reason", "tokens"),
    [
        ({"stop_token_ids": (3,), "max_tokens": 50}, {}, "stop", [1, 2, 3]),
        ({"max_tokens": 7}, {}, "length", [1, 2, 3, 4, 1, 2, 3]),
        ({"max_tokens": 50}, {"max_model_len": 18}, "length", [1, 2, 3, 4, 1, 2]),
    ],
)
def test_a_sequence_can_end_within_its_right_draft_tokens(
    params: dict[str, Any], limits: dict[str, int], reason: str, tokens: list[int]
) -> None:
    scheduler = speculating(**limits)
    scheduler.add(make_request(0, PERIOD * 3, **params))
    outputs = []
    while scheduler.has_work:
        outputs += step(scheduler).outputs
    assert [token_id for output in outputs for token_id in output.token_ids] == tokens
    assert [output.finish_reason for output in outputs][-1] == reason
    assert scheduler.pool.num_free == 16


def test_rejected_draft_tokens_are_never_cached() -> None:
    scheduler = speculating()
    scheduler.add(make_request(0, PERIOD * 3, max_tokens=20))
    num_drafted = 0
    while scheduler.has_work:
        num_drafted += step(scheduler, lambda text: 9 if len(text) % 2 else after_period(text)).stats.num_draft_tokens
    assert num_drafted > 0
    scheduler.add(make_request(1, PERIOD * 5, max_tokens=1))
    assert step(scheduler).stats.prefix_cache_hits == 12  # as much as the two texts share


def test_nan_after_right_draft_tokens_ends_the_request_after_them() -> None:
    scheduler = speculating()
    scheduler.add(make_request(0, PERIOD * 3, max_tokens=20))
    step(scheduler)
    [scheduled] = plan = scheduler.schedule()
    first, *_ = scheduled.draft_token_ids
    outputs = scheduler.commit(plan, StepResult([Sample(first), *[None] * (scheduled.num_logits - 1)])).outputs
    assert [(output.token_ids, output.finish_reason) for output in outputs] == [([first], None), ([], "error")]
    assert not scheduler.has_work
    assert scheduler.pool.num_cached == 0


def test_nan_after_a_rejected_draft_token_is_ignored() -> None:
    scheduler = speculating()
    scheduler.add(make_request(0, PERIOD * 3, max_tokens=20))
    step(scheduler)
    [scheduled] = plan = scheduler.schedule()
    assert scheduled.draft_token_ids
    [output] = scheduler.commit(plan, StepResult([Sample(9), *[None] * (scheduled.num_logits - 1)])).outputs
    assert (output.token_ids, output.finish_reason) == ([9], None)


def test_draft_tokens_take_no_block_that_a_running_sequence_may_need() -> None:
    scheduler = speculating(num_blocks=12, max_model_len=24)
    for request_id in range(2):
        scheduler.add(make_request(request_id, [request_id + 10, *PERIOD * 3, 1], max_tokens=9))
    num_drafted = 0
    while scheduler.has_work:
        plan = scheduler.schedule()
        num_drafted += sum(len(s.draft_token_ids) for s in plan)
        assert all(len(s.sequence.block_table) == -(-s.sequence.num_tokens // 4) for s in plan)
        scheduler.commit(plan, StepResult([*answers(plan)]))
    assert num_drafted > 0


def test_without_speculation_there_are_no_draft_tokens() -> None:
    scheduler = Scheduler(EngineConfig(num_blocks=16, block_size=4, max_model_len=64))
    scheduler.add(make_request(0, PERIOD * 3, max_tokens=12))
    while scheduler.has_work:
        output = step(scheduler)
        assert (len(output.outputs[0].token_ids), output.stats.num_draft_tokens) == (1, 0)


FAVOURED = {3: 30.0, 4: 30.0, 5: 29.0}  # with these the text repeats itself, but not always
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.2},
    {"temperature": 0.4, "top_p": 0.8, "logit_bias": FAVOURED},
    {"temperature": 0.8, "top_k": 4, "min_p": 0.05, "logit_bias": FAVOURED},
    {"temperature": 0.0, "repetition_penalty": 1.05, "logit_bias": FAVOURED},
    {"temperature": 0.5, "presence_penalty": 0.2, "frequency_penalty": 0.1, "logit_bias": FAVOURED},
    {"temperature": 0.5, "min_tokens": 9, "stop_token_ids": (5, 50, 111, 200), "logit_bias": FAVOURED},
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float32", "none", "int8", "int4"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_answers_have_the_same_bits_with_and_without_draft_tokens(draw: st.DataObject, kind: str) -> None:
    requests = []
    for request_id in range(draw.draw(st.integers(1, 5))):
        generator = torch.Generator().manual_seed(draw.draw(st.integers(0, 100)))
        phrase = torch.randint(0, 300, (draw.draw(st.integers(1, 9)),), generator=generator).tolist()
        prompt = (phrase * draw.draw(st.integers(1, 8)))[:40]
        params = {"seed": request_id, "num_logprobs": 2, "max_tokens": draw.draw(st.integers(1, 60))}
        requests.append(make_request(request_id, prompt, **(params | draw.draw(st.sampled_from(SAMPLING)))))
    limits: dict[str, Any] = {
        "block_size": 16,
        "num_blocks": draw.draw(st.sampled_from([8, 14, 64])),
        "max_model_len": draw.draw(st.sampled_from([64, 112])),
        "max_batch_tokens": draw.draw(st.sampled_from([3, 16, 256])),
    }
    limits["num_blocks"] = max(limits["num_blocks"], limits["max_model_len"] // 16)
    plain = run_to_end(tiny_engine(model_in(kind), **limits), requests)
    arrive_every = draw.draw(st.integers(0, 3))
    stats: list[StepStats] = []
    engine = tiny_engine(model_in(kind), **limits, speculation="on")
    assert run_to_end(engine, requests, arrive_every, lambda step: stats.append(step.stats)) == plain
    num_drafted, num_accepted = sum(s.num_draft_tokens for s in stats), sum(s.num_accepted_tokens for s in stats)
    event(f"accepted {num_accepted > 0}, rejected {num_drafted > num_accepted}")
    event(f"preempted {sum(s.num_preemptions for s in stats) > 0}")


def test_a_repeating_text_takes_fewer_steps() -> None:
    request = make_request(0, PERIOD * 5, max_tokens=120, temperature=1.0, logit_bias={3: 90.0, 4: 100.0})

    def run(speculation: Literal["on", "off"]) -> tuple[Transcript, int, int, int]:
        steps: list[StepOutput] = []
        engine = tiny_engine(model_in("float32"), speculation=speculation)
        transcript = run_to_end(engine, [request], on_step=steps.append)[0]
        drafted = sum(step.stats.num_draft_tokens for step in steps)
        return transcript, len(steps), drafted, sum(step.stats.num_accepted_tokens for step in steps)

    plain, num_plain_steps, _, _ = run("off")
    speculated, num_steps, num_drafted, num_accepted = run("on")
    assert speculated == plain
    assert 0 < num_accepted <= num_drafted
    assert num_steps == num_plain_steps - num_accepted
    assert num_steps < num_plain_steps / 2
