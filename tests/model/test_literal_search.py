"""LiteralSearch: finds what a plain alternation finds, in time that does not depend on the number of literals."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.model.tokenizer import literal_search
from caravan.model.tokenizer.literal_search import LiteralSearch

literals = st.lists(st.text("ab<|>\n", min_size=1, max_size=5), max_size=8)
texts = st.text("ab<|>\n", max_size=60)


@pytest.fixture(autouse=True, params=[3, 2**14])
def window_characters(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows shorter than a match, too."""
    monkeypatch.setattr(literal_search, "_WINDOW_CHARACTERS", request.param)


def alternation(of: list[str]) -> str:
    return "|".join(map(re.escape, sorted(of, key=len, reverse=True))) or "(?!)"


@given(of=literals, text=texts)
def test_matches_are_those_of_an_alternation_with_the_longest_literal_first(of: list[str], text: str) -> None:
    expected = [match.span() for match in re.finditer(alternation(of), text)]
    assert [match.span() for match in LiteralSearch(of).matches(text)] == expected


@given(of=literals, text=texts)
def test_every_place_where_a_literal_begins_is_found(of: list[str], text: str) -> None:
    expected = [start for start in range(len(text)) if any(text.startswith(one, start) for one in of)]
    assert [*LiteralSearch(of).starts(text)] == expected


@given(of=literals, text=texts)
def test_the_beginning_of_a_literal_at_the_end_is_found(of: list[str], text: str) -> None:
    found = [start for start in range(len(text)) if any(one.startswith(text[start:]) for one in of)]
    assert LiteralSearch(of).partial_start(text) == next(iter(found), None)


def test_empty_literals_are_left_out() -> None:
    assert [*LiteralSearch(["", "a"]).starts("ba")] == [1]


def test_a_literal_of_thousands_of_characters_is_found() -> None:
    literal = "<" + "a" * 5000 + ">"
    assert [*LiteralSearch([literal, "<a>"]).starts(f"<a>{literal}")] == [0, 3]


def test_the_time_does_not_depend_on_the_number_of_literals() -> None:
    text = "<|" * 200_000

    def seconds(num_literals: int) -> float:
        search = LiteralSearch([f"<|reserved_{number}|>" for number in range(num_literals)])
        took: list[float] = []
        for _ in range(3):
            began = time.thread_time()
            assert not [*search.matches(text)]
            took.append(time.thread_time() - began)
        return min(took)

    assert seconds(2000) < 5 * seconds(2) + 0.01
