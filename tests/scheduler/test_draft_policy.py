"""When a draft model runs: measured costs, acceptance, probes."""

import pytest

from caravan.scheduler.draft_policy import DraftCandidate, DraftPolicy, DraftShare
from caravan.scheduler.row_cost import FIXED_COST_ROWS, RowCost
from caravan.scheduler.sequence import Sequence
from tests.scheduler.requests import make_request


def policy_with(target: tuple[float, float], draft: tuple[float, float]) -> DraftPolicy:
    """Return a policy for two models, each with its fixed seconds and its seconds for each row."""
    policy = DraftPolicy()
    for num_rows in (1, 2, 4, 8, 16) * 20:
        policy.start_step()
        policy.observe_run(num_rows, draft[0] + draft[1] * num_rows)
        policy.observe_step(num_rows, target[0] + target[1] * num_rows + policy.draft_seconds)
    policy.start_step()
    policy._probe_seconds = 0.0
    return policy


def candidate(
    chance: float, num_missing: int = 1, num_left: int = 200, max_draft_tokens: int = 8, number: int = 0
) -> DraftCandidate:
    sequence = Sequence.of(make_request(number, [1] * num_missing, max_tokens=num_left))
    return DraftCandidate(sequence, chance, max_draft_tokens, num_missing, num_left)


def test_a_line_is_found_from_runs_with_different_rows() -> None:
    cost = RowCost()
    for num_rows in (1, 3, 9, 20) * 50:
        cost.observe(num_rows, 0.1 + 0.01 * num_rows)
    assert cost.row_seconds == pytest.approx(0.01, rel=0.02)
    assert cost.seconds(30) == pytest.approx(0.4, rel=0.02)


def test_equal_runs_give_their_mean_and_an_assumed_slope() -> None:
    cost = RowCost()
    assert (cost.is_known, cost.seconds(3), cost.row_seconds) == (False, 0.0, 0.0)
    for _ in range(20):
        cost.observe(1, 0.11)
    assert cost.seconds(1) == pytest.approx(0.11)
    assert cost.row_seconds == pytest.approx(0.11 / (FIXED_COST_ROWS + 1))


def test_a_cost_follows_a_machine_that_becomes_slower() -> None:
    cost = RowCost()
    for seconds in [0.1] * 200 + [0.2] * 200:
        cost.observe(1, seconds)
    assert cost.seconds(1) == pytest.approx(0.2, rel=0.03)


def test_runs_that_take_no_time_by_the_clock_are_no_error() -> None:
    policy = policy_with(target=(0.0, 0.0), draft=(0.0, 0.0))
    assert len(policy.choose([candidate(0.9)], 1, 32, 512)) == 1


def test_a_cheap_draft_model_that_is_right_drafts_many_tokens() -> None:
    policy = policy_with(target=(0.15, 0.005), draft=(0.008, 0.001))
    assert policy.choose([candidate(0.95)], 1, 32, 512) == [DraftShare(1, 8)]
    (share,) = policy.choose([candidate(0.5)], 1, 32, 512)
    assert 1 <= share.num_draft_tokens <= 3


def test_nothing_is_drafted_where_it_costs_more_than_it_saves() -> None:
    cheap = policy_with(target=(0.15, 0.005), draft=(0.008, 0.001))
    assert cheap.choose([candidate(0.05)], 1, 32, 512) == [DraftShare()]
    expensive = policy_with(target=(0.15, 0.005), draft=(0.14, 0.001))
    assert expensive.choose([candidate(0.8)], 1, 32, 512) == [DraftShare()]
    rows_cost = policy_with(target=(0.01, 0.01), draft=(0.001, 0.0001))
    assert rows_cost.choose([candidate(0.6, number=i) for i in range(8)], 8, 32, 512) == [DraftShare()] * 8


def test_the_best_sequences_draft_within_the_rows_of_a_step() -> None:
    policy = policy_with(target=(0.15, 0.0001), draft=(0.004, 0.0001))
    shares = policy.choose([candidate(0.02), candidate(0.95), candidate(0.9)], 3, 32, 512)
    assert shares[0] == DraftShare()
    assert shares[1].num_draft_tokens == shares[2].num_draft_tokens > 1
    crowded = policy.choose([candidate(0.95, number=i) for i in range(20)], 20, 32, 512)
    assert 0 < sum(share.num_draft_tokens for share in crowded) <= 12


def test_a_sequence_never_drafts_beyond_its_limit() -> None:
    policy = policy_with(target=(0.15, 0.0001), draft=(0.001, 0.0001))
    assert policy.choose([candidate(0.95, max_draft_tokens=2)], 1, 32, 512) == [DraftShare(1, 2)]


def test_a_long_text_is_caught_up_in_steps_that_take_at_most_twice_as_long() -> None:
    policy = policy_with(target=(0.1, 0.001), draft=(0.002, 0.001))
    (share,) = policy.choose([candidate(0.9, num_missing=300)], 1, 32, 512)
    assert share.num_draft_tokens == 0
    assert 80 < share.num_rows < 120
    assert policy.choose([candidate(0.9, num_missing=300)], 1, 32, 64) == [DraftShare(64, 0)]


def test_a_long_text_is_not_caught_up_for_a_few_tokens() -> None:
    policy = policy_with(target=(0.1, 0.001), draft=(0.002, 0.001))
    assert policy.choose([candidate(0.9, num_missing=300, num_left=3, max_draft_tokens=2)], 1, 32, 512) == [
        DraftShare()
    ]


def test_without_a_measured_step_nothing_is_drafted() -> None:
    assert DraftPolicy().choose([candidate(0.9)], 1, 32, 512) == [DraftShare()]


def test_new_sequences_begin_with_the_acceptance_of_all() -> None:
    policy = DraftPolicy()
    first = candidate(0.6).sequence
    for _ in range(60):
        policy.learn(first, 0, is_wrong=True)
    assert policy.chance(first) < 0.01
    assert policy.chance(candidate(0.6).sequence) < 0.02
    for _ in range(10):
        policy.learn(first, 3, is_wrong=False)
    assert policy.chance(first) > 0.9
    assert policy.chance(candidate(0.6).sequence) > 0.8


def run_steps(policy: DraftPolicy, chance: float, num_steps: int, target: float, draft: float) -> tuple[float, float]:
    """Return the seconds of all steps and those of the draft model; a draft token is right with this chance."""
    sequence = candidate(0.0).sequence
    total = drafting = 0.0
    num_right = 0.0
    for _ in range(num_steps):
        policy.start_step()
        one = DraftCandidate(sequence, policy.chance(sequence), 8, 1, 200)
        (share,) = policy.choose([one], 1, 32, 512)
        for _ in range(share.num_draft_tokens):
            policy.observe_run(1, draft)
        if share.num_draft_tokens:
            num_right += chance
            policy.learn(sequence, int(num_right), is_wrong=num_right < 1)
            num_right -= int(num_right)
        seconds = target * (1 + share.num_draft_tokens / 20) + policy.draft_seconds
        policy.observe_step(1 + share.num_draft_tokens, seconds)
        total += seconds
        drafting += policy.draft_seconds
    return total, drafting


def test_a_draft_model_that_is_never_right_takes_less_than_three_percent() -> None:
    policy = DraftPolicy()
    total, _ = run_steps(policy, 0.0, 600, target=0.15, draft=0.01)
    assert total < 600 * 0.15 * 1.03


def test_probes_notice_a_draft_model_that_becomes_right() -> None:
    policy = DraftPolicy()
    run_steps(policy, 0.0, 600, target=0.15, draft=0.01)
    _, drafting = run_steps(policy, 0.0, 600, target=0.15, draft=0.01)
    assert 0 < drafting < 600 * 0.15 * 0.011
    run_steps(policy, 1.0, 100, target=0.15, draft=0.01)
    assert policy.acceptance > 0.9
