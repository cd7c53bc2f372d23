"""How the tokens of prompts in a step are shared out between API keys."""

from caravan.scheduler.prefill_budget import PrefillBudget
from caravan.scheduler.sequence import Sequence
from tests.scheduler.requests import make_request


def prompts(**num_tokens: int) -> list[Sequence]:
    return [Sequence.of(make_request(0, [1] * num, key=key)) for key, num in num_tokens.items()]


def shares(budget: PrefillBudget, *keys: str) -> list[int]:
    return [budget.left_of(key) for key in keys]


def test_one_key_gets_everything() -> None:
    budget = PrefillBudget(100, prompts(a=1000), prompts(a=1000))
    assert shares(budget, "a", "unknown") == [100, 100]


def test_keys_with_much_to_do_get_equal_shares() -> None:
    assert shares(PrefillBudget(100, prompts(a=1000), prompts(b=1000)), "a", "b") == [50, 50]


def test_what_a_key_does_not_need_goes_to_the_others() -> None:
    assert shares(PrefillBudget(100, prompts(a=1000, b=10), prompts(c=500)), "a", "b", "c") == [45, 10, 45]


def test_there_are_no_shares_where_everything_fits() -> None:
    assert shares(PrefillBudget(100, prompts(a=30), prompts(b=70)), "a", "b") == [100, 100]


def test_running_sequences_that_wait_for_their_next_token_need_no_share() -> None:
    decoding, prompt = prompts(a=50, b=1000)
    decoding.num_computed_tokens = 49
    assert shares(PrefillBudget(100, [decoding, prompt]), "a", "b") == [100, 100]


def test_what_is_spent_is_gone_for_the_key_and_for_all() -> None:
    budget = PrefillBudget(100, prompts(a=1000, b=1000))
    budget.spend("a", 50)
    assert (budget.num_left, *shares(budget, "a", "b")) == (50, 0, 50)
    budget.spend("b", 20)
    assert (budget.num_left, *shares(budget, "a", "b", "unknown")) == (30, 0, 30, 30)


def test_every_key_gets_on_when_there_are_more_keys_than_tokens() -> None:
    budget = PrefillBudget(3, prompts(**{f"k{number}": 100 for number in range(10)}))
    assert all(left >= 1 for left in shares(budget, *(f"k{number}" for number in range(10))))
