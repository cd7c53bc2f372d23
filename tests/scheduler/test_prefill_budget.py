"""PrefillBudget: how the prompt tokens of a step are divided between API keys."""

from caravan.scheduler.prefill_budget import LEAST_SHARE, Place, PrefillBudget
from caravan.scheduler.sequence import Sequence
from tests.scheduler.requests import make_request


def prompts(urgency: int = 0, **num_tokens: int) -> list[Sequence]:
    return [Sequence.of(make_request(0, [1] * num, key=key, urgency=urgency)) for key, num in num_tokens.items()]


def shares(budget: PrefillBudget, *keys: str, urgency: int = 0) -> list[int]:
    return [budget.left_of(one) for one in prompts(urgency, **dict.fromkeys(keys, 1))]


def spend(budget: PrefillBudget, key: str, num_tokens: int) -> None:
    (sequence,) = prompts(**{key: 1})
    budget.spend(sequence, num_tokens)


def test_one_key_gets_everything() -> None:
    budget = PrefillBudget(100, prompts(a=1000), prompts(a=1000))
    assert shares(budget, "a", "unknown") == [100, 100]


def test_keys_with_long_prompts_get_equal_shares() -> None:
    assert shares(PrefillBudget(100, prompts(a=1000), prompts(b=1000)), "a", "b") == [50, 50]


def test_tokens_that_a_key_does_not_need_go_to_the_others() -> None:
    assert shares(PrefillBudget(100, prompts(a=1000, b=10), prompts(c=500)), "a", "b", "c") == [45, 10, 45]


def test_there_are_no_shares_where_everything_fits() -> None:
    assert shares(PrefillBudget(100, prompts(a=30), prompts(b=70)), "a", "b") == [100, 100]


def test_running_sequences_that_wait_for_their_next_token_need_no_share() -> None:
    decoding, prompt = prompts(a=50, b=1000)
    decoding.num_computed_tokens = 49
    assert shares(PrefillBudget(100, [decoding, prompt]), "a", "b") == [100, 100]


def test_spent_tokens_are_subtracted_from_the_key_and_from_the_total() -> None:
    budget = PrefillBudget(100, prompts(a=1000, b=1000))
    spend(budget, "a", 50)
    assert (budget.num_left, *shares(budget, "a", "b")) == (50, 0, 50)
    spend(budget, "b", 20)
    assert (budget.num_left, *shares(budget, "a", "b", "unknown")) == (30, 0, 30, 30)


def test_where_shares_would_be_too_small_keys_take_turns() -> None:
    keys = [f"k{number}" for number in range(10)]
    turns: dict[Place, int] = {}
    had = dict.fromkeys(keys, 0)
    for _ in range(20):
        left = shares(PrefillBudget(40, prompts(**dict.fromkeys(keys, 1000)), (), turns), *keys)
        assert all(num == 0 or num >= LEAST_SHARE for num in left[1:])
        had = {key: num + more for (key, num), more in zip(had.items(), left, strict=True)}
    assert min(had.values()) >= 60
    assert max(had.values()) <= 100


def test_a_key_that_had_no_turn_is_next() -> None:
    turns: dict[Place, int] = {}
    old = prompts(**{f"k{number}": 1000 for number in range(10)})
    for _ in range(5):
        PrefillBudget(40, old, (), turns)
    assert shares(PrefillBudget(40, old, prompts(new=13), turns), "new") == [13]


def test_tokens_that_the_first_keys_do_not_need_go_to_the_next() -> None:
    keys = [f"k{number}" for number in range(10)]
    budget = PrefillBudget(40, (), prompts(**dict.fromkeys(keys, 8)))
    assert sum(shares(budget, *keys)) == 40


def test_more_urgent_requests_come_first() -> None:
    budget = PrefillBudget(100, prompts(a=1000, b=1000), prompts(urgency=-1, b=70))
    assert shares(budget, "b", urgency=-1) == [70]
    assert sum(shares(budget, "a", "b")) == 30
