"""Thoughts and content: the same parts however the text is divided."""

from collections.abc import Sequence
from itertools import combinations

import pytest

from caravan.scheduler.thought_budget import INSIDE, ThoughtBudget
from caravan.server.generation.mark_automaton import mark_automaton
from caravan.server.generation.thought_splitter import Thoughts
from caravan.server.sandbox.thought_marks import ThoughtMarks, ThoughtStart, thought_marks

THINK = ThoughtMarks("<think>", "</think>")


def parts(chunks: Sequence[str], start: ThoughtStart, marks: ThoughtMarks = THINK) -> tuple[str, str]:
    """Return the thought and the content of a text that comes in chunks."""
    splitter = Thoughts(marks, start).splitter()
    assert splitter is not None
    found = [*map(splitter.push, chunks), splitter.flush()]
    return "".join(thought for thought, _ in found), "".join(content for _, content in found)


@pytest.mark.parametrize(
    ("text", "start", "expected"),
    [
        ("Hm.\n</think>\n\nYes.", "open", ("Hm.", "Yes.")),
        ("\nHm.\n\nOr?\n</think>\n\nYes.\n", "open", ("Hm.\n\nOr?", "Yes.\n")),
        ("<think>\nHm.</think>Yes.", "open", ("Hm.", "Yes.")),  # the prompt has opened it, and the model does again
        ("Hm.", "open", ("Hm.", "")),
        ("Hm.\n</thi", "open", ("Hm.\n</thi", "")),
        ("</think>Yes.", "open", ("", "Yes.")),
        ("  ", "open", ("  ", "")),
        ("", "open", ("", "")),
        ("a</think>b</think>c", "open", ("a", "b</think>c")),
        ("a<</think>b", "open", ("a<", "b")),
        ("a</</think>b", "open", ("a</", "b")),
        ("a</thin\n</think>b", "open", ("a</thin", "b")),
        (" \n<think>Hm.</think>\nYes.", "undecided", ("Hm.", "Yes.")),
        ("<think></think>Yes.", "undecided", ("", "Yes.")),
        ("Yes. <think>no</think>", "undecided", ("", "Yes. <think>no</think>")),
        ("\n<thin ice", "undecided", ("", "\n<thin ice")),
        ("\n<thin", "undecided", ("", "\n<thin")),
        ("</think>Yes.", "undecided", ("", "</think>Yes.")),
        ("<think>Hm.", "undecided", ("Hm.", "")),
    ],
)
def test_every_division_of_a_text_gives_the_same_parts(
    text: str, start: ThoughtStart, expected: tuple[str, str]
) -> None:
    assert parts([text], start) == expected
    assert parts([*text], start) == expected
    for first, second in combinations(range(len(text) + 1), 2):
        assert parts([text[:first], text[first:second], text[second:]], start) == expected


def test_a_text_that_is_content_from_its_beginning_has_no_splitter() -> None:
    assert Thoughts(THINK, "closed").splitter() is None


def test_the_content_begins_with_its_first_character() -> None:
    splitter = Thoughts(THINK, "open").splitter()
    assert splitter is not None
    assert splitter.is_undecided
    for text, is_over in (("a</think>", False), ("\n", False), ("\nb", True), ("c", True)):
        splitter.push(text)
        assert splitter.is_over == is_over
        assert not splitter.is_undecided


@pytest.mark.parametrize(
    ("prompt", "start"),
    [
        ("<|im_start|>assistant\n<think>\n", "open"),
        ("<|im_start|>assistant\n<think>", "open"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "closed"),
        ("<|im_start|>assistant\n", "undecided"),
        ("user: <think><|im_end|>\n<|im_start|>assistant\n", "undecided"),
    ],
)
def test_the_end_of_the_prompt_decides_how_a_response_begins(prompt: str, start: ThoughtStart) -> None:
    assert THINK.start_after(prompt) == start


@pytest.mark.parametrize(
    ("content", "start"),
    [
        ("<think>Let me", "open"),
        ("<think>Hm.</think>So", "closed"),
        ("</think>a<think>", "open"),
        ("So", "closed"),
        (" ", "undecided"),
    ],
)
def test_a_continued_message_decides_it_too(content: str, start: ThoughtStart) -> None:
    assert THINK.start_in(content) == start


def test_marks_are_those_of_the_template() -> None:
    assert thought_marks("{{ content.split('</think>')[-1] }}") == THINK
    assert thought_marks("[THINK]{{ x }}[/THINK]") == ("[THINK]", "[/THINK]")
    assert thought_marks("{{ messages }} <think>") is None


@pytest.mark.parametrize(
    ("text", "max_tokens", "start", "expected"),
    [  # each character is a token
        ("Hm.</think", 3, "open", "Hm."),
        ("Hm.\n</thin", 4, "open", "Hm."),
        ("Hm.<", 3, "open", "Hm."),
        ("Hm.<", 4, "open", "Hm.<"),  # the model has written it itself
        ("Hm.</th", 5, "open", "Hm."),  # the model has begun the mark, and the engine has gone on with it
        ("Hm.</th", 7, "open", "Hm.</th"),
        ("Hm.</th", 100, "open", "Hm.</th"),
        ("</thi", 0, "open", ""),
        ("<", 0, "open", ""),
        ("<think>Hm</thi", 2, "undecided", "Hm"),
        ("<think></thi", 0, "undecided", ""),
        ("Hm.", 1, "open", "Hm."),
    ],
)
def test_a_forced_mark_that_is_cut_off_is_not_shown(
    text: str, max_tokens: int, start: ThoughtStart, expected: str
) -> None:
    automaton = mark_automaton(THINK, lambda token_id: bytes([token_id]), 128)
    first_state = INSIDE if start == "open" else automaton.num_inside + 1
    budget = ThoughtBudget(
        max_tokens=max_tokens,
        closing_token_ids=tuple(THINK.closing.encode()),
        first_state=first_state,
        automaton=automaton,
    )
    splitter = Thoughts(THINK, start).splitter(budget)
    assert splitter is not None
    shown = []
    for character in text:
        splitter.count(ord(character))
        shown.append(splitter.push(character))
    shown.append(splitter.flush())
    assert "".join(thought for thought, _ in shown) == expected
    assert "".join(content for _, content in shown) == ""
