"""ToolCallParser: content and calls are separated for any split of the text."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.server.openai.tool_calls.call_format import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, CallFormat
from caravan.server.openai.tool_calls.tool_call_parser import ToolCallParser
from tests.support.reading_calls import FORMATS, read

ARGUMENTS = '{"city": "Paris, \\"the\\" {one}", "days": [1, {"a": "]}"}]}'


@pytest.mark.parametrize("call_format", FORMATS, ids=lambda one: one.name)
def test_what_a_format_writes_is_read_back(call_format: CallFormat) -> None:
    for calls in ([("f", "{}")], [("weather", ARGUMENTS), ("f", "{}"), ("g", '{"x": 1}')]):
        assert read(call_format, [call_format.written(calls)]) == ("", calls)


TEXTS = st.one_of(
    st.text(alphabet=' \n{}[]",:;<>/ab\\_tolcnmeg', max_size=40),
    st.sampled_from(
        [
            "Just text.",
            "Let me see.\n" + HERMES.written([("f", ARGUMENTS)]),
            HERMES.written([("f", "{}"), ("g", ARGUMENTS)]) + "\nDone.",
            MISTRAL.written([("f", ARGUMENTS), ("g", "{}")]),
            LLAMA.written([("f", ARGUMENTS)]),
            '<|python_tag|>{"name": "f", "parameters": {}}',
            '{"name": "Anna", "age": 3}',
            '<tool_call>\n{"name": "f", "argum',
            "<tool_call>nothing of the kind</tool_call>",
            MISTRAL_NAMED.written([("f", ARGUMENTS), ("g", "{}")]),
            '<tool_call>{"name": "g", "arguments": {"a": "' + HERMES.written([("f", "{}")]),
            '{"parameters": {"a": 1}, "name": "f"}; {"name": "g", "parameters": null} Done.',
            '[TOOL_CALLS] [{"name": "f", "arguments": {"a": ',
        ]
    ),
)


@pytest.mark.parametrize("call_format", FORMATS, ids=lambda one: one.name)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 120), max_size=8))
def test_the_result_does_not_depend_on_how_the_text_is_split(
    call_format: CallFormat, text: str, cuts: list[int]
) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(places)]
    assert read(call_format, pieces) == read(call_format, [text]) == read(call_format, list(text))


@pytest.mark.parametrize("call_format", FORMATS, ids=lambda one: one.name)
@pytest.mark.parametrize(
    "text",
    ["", "Hello, world.", "{", "a < b, [1], {x}", '{"name": "Anna", "age": 3}', '  {"nam', '{"a": 1}', "<|python_tag"],
)
def test_text_without_a_call_is_content(call_format: CallFormat, text: str) -> None:
    assert read(call_format, list(text)) == (text, [])


def test_content_before_and_after_calls_is_kept() -> None:
    text = "Let me see.\n" + HERMES.written([("f", "{}")]) + "\nDone."
    assert read(HERMES, [text]) == ("Let me see.\n" + "Done.", [("f", "{}")])


def test_a_broken_call_is_content() -> None:
    for text in ("<tool_call>\nf(1)\n</tool_call>", '<tool_call>{"name": 3}</tool_call>'):
        assert read(HERMES, list(text)) == (text, [])


def test_arguments_are_streamed_before_the_call_is_complete() -> None:
    reader = ToolCallParser(HERMES)
    assert reader.push('<tool_call>\n{"name": "f", "arguments": {"a"')[0].calls[0].arguments == '{"a"'
    assert reader.push(": 1")[0].calls[0].arguments == ": 1"
    assert reader.push("}}\n")[0].calls[0].arguments == "}"


def test_a_truncated_response_keeps_its_arguments() -> None:
    assert read(MISTRAL, ['[TOOL_CALLS] [{"name": "f", "arguments": {"a": "b'])[1] == [("f", '{"a": "b')]


@pytest.mark.parametrize("call_format", FORMATS, ids=lambda one: one.name)
def test_only_the_first_call_is_read_unless_several_are_allowed(call_format: CallFormat) -> None:
    text = call_format.written([("f", "{}"), ("g", "{}")])
    assert read(call_format, list(text), allows_several=False) == ("", [("f", "{}")])


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_arguments_of_any_kind_survive(value: object) -> None:
    arguments = json.dumps({"value": value})
    assert read(HERMES, list(HERMES.written([("f", arguments)]))) == ("", [("f", arguments)])


def test_parts_are_in_the_order_of_the_text() -> None:
    text = "Let me see.\n" + HERMES.written([("f", '{"a": 1}')]) + "\nDone."
    first, second = ToolCallParser(HERMES).push(text)
    assert (first.content, [call.name for call in first.calls]) == ("Let me see.\n", ["f"])
    assert (second.content, second.calls) == ("Done.", [])


def test_a_truncated_call_is_open() -> None:
    reader = ToolCallParser(HERMES)
    reader.push('<tool_call>\n{"name": "f", "arguments": {"a": 1')
    assert reader.is_in_call
    reader.push("}}")
    assert not reader.is_in_call
