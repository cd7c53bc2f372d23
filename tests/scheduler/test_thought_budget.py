"""Budgets of thoughts: the same place as in the text, and the closing mark exactly when they are used up."""

import random

import pytest

from caravan.scheduler.thought_budget import INSIDE, MarkAutomaton, ThoughtBudget, ThoughtPosition
from caravan.server.generation.mark_automaton import mark_automaton
from caravan.server.generation.thought_splitter import Thoughts
from caravan.server.sandbox.thought_marks import ThoughtMarks, ThoughtStart

THINK = ThoughtMarks("<think>", "</think>")
# Whole marks, parts of them, text across their ends, space, and a token without text.
TOKENS = [
    "",
    "<think>",
    "</think>",
    "<",
    "</",
    "th",
    "think",
    "ink",
    ">",
    ">\n",
    "k>a",
    "a<",
    "a</th",
    "b",
    " ",
    "\n",
    "/",
]
TOKENS += ["x</think>y", "<think>z", " <", "</think", "<<"]


def automaton(marks: ThoughtMarks = THINK) -> MarkAutomaton:
    return mark_automaton(marks, lambda token_id: TOKENS[token_id].encode(), len(TOKENS))


def budget_of(max_tokens: int, start: ThoughtStart, closing: tuple[int, ...]) -> ThoughtBudget:
    found = automaton()
    first_state = INSIDE if start == "open" else found.num_inside + 1
    return ThoughtBudget(max_tokens=max_tokens, closing_token_ids=closing, first_state=first_state, automaton=found)


@pytest.mark.parametrize("start", ["open", "undecided"])
def test_the_automaton_is_where_the_splitter_is(start: ThoughtStart) -> None:
    generator = random.Random(7)
    budget = budget_of(10**6, start, (2,))
    num_over = 0
    for _ in range(3000):
        token_ids = generator.choices(range(len(TOKENS)), k=generator.randint(1, 12))
        splitter = Thoughts(THINK, start).splitter()
        assert splitter is not None
        position = ThoughtPosition.of(budget)
        for end, token_id in enumerate(token_ids, start=1):
            splitter.push(TOKENS[token_id])
            position.read(token_ids[:end])
            is_after = splitter.is_over or splitter._place == "after"
            if start == "undecided":
                assert position.is_over == is_after
                assert budget.automaton.is_inside(position.state) == (splitter._place == "inside")
            else:
                assert position.is_over == is_after
        num_over += position.is_over
    assert 100 < num_over < 2900


def test_the_closing_mark_is_forced_after_the_budget_and_never_before() -> None:
    budget = budget_of(3, "open", (4, 6, 8))  # </ think >
    text = [13, 13, 13]
    for end in range(3):
        position = ThoughtPosition.of(budget)
        position.read(text[:end])
        assert position.forced_token(text[:end]) is None
    output = [*text]
    for expected in (4, 6, 8):
        position = ThoughtPosition.of(budget)
        position.read([99, *output], 1)  # after a prompt of one token
        assert position.forced_token([99, *output]) == expected
        output.append(expected)
    position.read([99, *output], 1)
    assert position.is_over
    assert position.forced_token(output) is None


def test_a_closing_mark_that_has_begun_is_continued() -> None:
    position = ThoughtPosition.of(budget_of(3, "open", (4, 6, 8)))
    output = [13, 4, 6]  # b </ think
    position.read(output)
    assert position.forced_token(output) == 8


def test_a_budget_of_nothing_ends_a_thought_at_once() -> None:
    position = ThoughtPosition.of(budget_of(0, "open", (2,)))
    assert position.forced_token([]) == 2
    position = ThoughtPosition.of(budget_of(0, "undecided", (2,)))
    assert position.forced_token([]) is None
    position.read([15, 1])  # a line break and the opening mark
    assert position.forced_token([15, 1]) == 2


def test_tokens_count_from_the_opening_mark_on() -> None:
    position = ThoughtPosition.of(budget_of(2, "undecided", (2,)))
    output = [14, 3, 6, 8, 13, 13]
    position.read(output)
    assert position.num_tokens == 2
    assert position.forced_token(output) == 2
    assert position.after([2]).is_over
    assert not position.is_over


def test_a_text_without_a_thought_is_never_forced() -> None:
    position = ThoughtPosition.of(budget_of(0, "undecided", (2,)))
    position.read([13, 1])
    assert position.is_over
    assert position.forced_token([13, 1]) is None
    assert not position.may_force(num_unknown=5)


def test_unknown_tokens_are_read_when_they_are_known() -> None:
    position = ThoughtPosition.of(budget_of(2, "open", (2,)))
    position.read([13, -1])
    assert position.num_read == 1
    assert position.may_force(num_unknown=1)
    assert not position.may_force(num_unknown=0)
    position.read([13, 2])
    assert position.is_over


def test_few_tokens_are_listed() -> None:
    found = automaton()
    listed = {TOKENS[token_id] for token_id in found.token_ids}
    assert "b" not in listed
    assert {"", "<think>", "</think>", "ink", "k>a", "a<"} <= listed
