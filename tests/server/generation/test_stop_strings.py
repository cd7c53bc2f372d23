"""Stop strings: the automaton compared with str.find, for any split of the text."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.server.generation.stop_strings import StopStrings, TextCutter

letters = st.text("ab", max_size=30)
needles = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def first_match(text: str, strings: list[str]) -> tuple[int, int] | None:
    """Return (start, end) of the match that ends first, the longest of those that end there."""
    for end in range(1, len(text) + 1):
        lengths = [len(string) for string in strings if text[:end].endswith(string)]
        if lengths:
            return end - max(lengths), end
    return None


def cut(pieces: list[str], strings: list[str], *, include_match: bool = False) -> tuple[str, bool]:
    """Return all that goes out and whether the text was cut."""
    cutter = TextCutter(StopStrings(strings), include_match=include_match)
    shown = ""
    for piece in pieces:
        released, is_cut = cutter.push(piece)
        shown += released
        if is_cut:
            return shown, True
    return shown + cutter.flush(), False


@given(letters, needles, st.booleans(), st.lists(st.integers(0, 30), max_size=6))
def test_the_text_is_cut_at_the_first_match_for_any_split(
    text: str, strings: list[str], include_match: bool, cuts: list[int]
) -> None:
    bounds = sorted({0, len(text), *(min(position, len(text)) for position in cuts)})
    pieces = [text[start:end] for start, end in pairwise(bounds)]
    match = first_match(text, strings)
    expected = (text, False) if match is None else (text[: match[1] if include_match else match[0]], True)
    assert cut(pieces, strings, include_match=include_match) == expected


@given(letters, needles)
def test_only_possible_prefixes_of_stop_strings_are_held_back(text: str, strings: list[str]) -> None:
    cutter = TextCutter(StopStrings(strings))
    shown, is_cut = cutter.push(text)
    if is_cut:
        return
    held = text[len(shown) :]
    possible = [end for string in strings for end in range(len(string)) if text.endswith(string[:end])]
    assert len(held) == max(possible, default=0)


def test_a_match_before_min_tokens_is_text() -> None:
    cutter = TextCutter(StopStrings(["ab"]))
    shown, is_cut = cutter.push("xab", may_stop=False)
    assert not is_cut
    assert (shown + cutter.push("cab")[0], cutter.flush()) == ("xabc", "")


def test_a_stop_string_must_not_be_empty() -> None:
    with pytest.raises(ValueError, match="at least one character"):
        StopStrings(["a", ""])
