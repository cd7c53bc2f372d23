"""All formats of a call are parsed as the same call, whole and in small deltas."""

import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.server.openai.tool_calls.call_format import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, CallFormat
from caravan.server.openai.tool_calls.tool_call_parser import ToolCallParser
from tests.support.reading_calls import FORMATS, Read, read

CITY = '{"city": "Paris"}'
SPACES = st.text(alphabet=" \n\t\r", max_size=3)
CHARACTERS = st.characters(exclude_categories=["Cs"])
NAMES = st.text(CHARACTERS, min_size=1, max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(CHARACTERS, max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(CHARACTERS, max_size=8), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(CHARACTERS, max_size=8), VALUES, max_size=4)
EXTRAS = {"id": "a1B2c3D4e", "type": "function", "index": 0, "strict": None, "note": {"name": "x", "arguments": [{}]}}
# Text around calls that has nothing of a call, but much of what one is made of.
WORDS = st.text(alphabet='ab{}",:[]< >/\\n\n', max_size=20).filter(lambda text: text == text.strip())

Draw = Callable[[st.SearchStrategy[Any]], Any]


def in_pieces(call_format: CallFormat, text: str, **options: Any) -> Read:
    """Return what is read of a text, which must be the same in deltas of 1, 2 and 3 characters."""
    whole = read(call_format, [text], **options)
    for size in (1, 2, 3):
        assert read(call_format, [text[i : i + size] for i in range(0, len(text), size)], **options) == whole
    return whole


def written_json(draw: Draw, value: Any) -> str:
    """Return a JSON text of a value, with any white space, and escapes where none are needed."""
    space = draw(SPACES)
    match value:
        case dict():
            items = [
                f"{written_json(draw, key)}{space}:{draw(SPACES)}{written_json(draw, item)}"
                for key, item in value.items()
            ]
            return "{" + space + f"{draw(SPACES)},{draw(SPACES)}".join(items) + draw(SPACES) + "}"
        case list():
            return "[" + space + f"{space},{draw(SPACES)}".join(written_json(draw, item) for item in value) + "]"
        case str():
            if draw(st.booleans()):
                return json.dumps(value, ensure_ascii=draw(st.booleans()))
            return '"' + "".join(f"\\u{unit:04x}" for unit in utf16(value)) + '"'
    return json.dumps(value)


def utf16(text: str) -> list[int]:
    encoded = text.encode("utf-16-be")
    return [int.from_bytes(encoded[i : i + 2]) for i in range(0, len(encoded), 2)]


def written_call(draw: Draw, name: str, arguments: dict[str, Any]) -> str:
    """Return the object of a call in one of its forms."""
    key = draw(st.sampled_from(["arguments", "parameters"]))
    inner = written_json(draw, arguments)
    fields = {
        "name": written_json(draw, name),
        key: json.dumps(inner) if draw(st.booleans()) else inner,
    }
    extras = {name: json.dumps(value) for name, value in EXTRAS.items() if draw(st.booleans())}
    if draw(st.booleans()):
        fields = {"function": joined(draw, fields)}
    return joined(draw, {**fields, **extras})


def joined(draw: Draw, fields: dict[str, str]) -> str:
    names = draw(st.permutations(list(fields)))
    return "{" + ",".join(f"{written_json(draw, name)}:{draw(SPACES)}{fields[name]}" for name in names) + "}"


def written_answer(draw: Draw, call_format: CallFormat, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """Return the text of an answer that calls."""
    objects = [written_call(draw, name, arguments) for name, arguments in calls]
    listed = "[" + f"{draw(SPACES)},{draw(SPACES)}".join(objects) + "]"
    if call_format == HERMES:
        if draw(st.booleans()):
            return f"<tool_call>{draw(SPACES)}{listed if draw(st.booleans()) else '; '.join(objects)}\n</tool_call>"
        return draw(SPACES).join(f"<tool_call>{draw(SPACES)}{one}{draw(SPACES)}</tool_call>" for one in objects)
    if call_format == LLAMA:
        tag = draw(st.sampled_from(["", "<|python_tag|>"]))
        return tag + draw(SPACES) + draw(st.sampled_from(["; ", ",", "\n"])).join(objects)
    return f"[TOOL_CALLS]{draw(SPACES)}{listed}"


@pytest.mark.slow
@pytest.mark.parametrize("call_format", [HERMES, MISTRAL, LLAMA], ids=lambda one: one.name)
@given(choices=st.data(), calls=st.lists(st.tuples(NAMES, OBJECTS), min_size=1, max_size=3))
def test_every_way_of_writing_an_object_is_the_same_call(
    call_format: CallFormat, choices: st.DataObject, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    before = "" if call_format == LLAMA else choices.draw(WORDS)
    text = before + written_answer(choices.draw, call_format, calls)
    content, found = in_pieces(call_format, text)
    assert content == before
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls


@pytest.mark.slow
@given(
    calls=st.lists(st.tuples(st.from_regex(r"[a-zA-Z0-9_.-]{1,12}", fullmatch=True), OBJECTS), min_size=1, max_size=3),
    choices=st.data(),
)
def test_a_name_before_its_arguments_is_a_call(calls: list[tuple[str, dict[str, Any]]], choices: st.DataObject) -> None:
    call_id = choices.draw(st.sampled_from(["", "[CALL_ID]a1B2c3D4e"]))
    before = choices.draw(WORDS)
    text = before + "".join(
        f"[TOOL_CALLS]{name}{call_id}[ARGS]{choices.draw(SPACES)}{written_json(choices.draw, arguments)}"
        for name, arguments in calls
    )
    content, found = in_pieces(MISTRAL_NAMED, text)
    assert content == before
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls


@pytest.mark.parametrize("call_format", [MISTRAL, MISTRAL_NAMED], ids=lambda one: one.name)
@pytest.mark.parametrize(
    "text",
    [
        '[TOOL_CALLS] [{"name": "f", "arguments": {"city": "Paris"}, "id": "a1B2c3D4e"}]',
        '[TOOL_CALLS][{"id": "a1B2c3D4e", "arguments": {"city": "Paris"}, "name": "f"}]',
        '[TOOL_CALLS] {"name": "f", "arguments": {"city": "Paris"}}',
        '[TOOL_CALLS]f[ARGS]{"city": "Paris"}',
        '[TOOL_CALLS]f[CALL_ID]a1B2c3D4e[ARGS]{"city": "Paris"}',
    ],
)
def test_mistral_formats_leave_no_text(call_format: CallFormat, text: str) -> None:
    assert in_pieces(call_format, text) == ("", [("f", CITY)])


@pytest.mark.parametrize(
    "text",
    [
        f'<think>I could write <tool_call> here.</think><tool_call>{{"name": "f", "arguments": {CITY}}}</tool_call>',
        f'<tool_call>f({{}})</tool_call>\n<tool_call>{{"name": "f", "arguments": {CITY}}}</tool_call>',
        f'<tool_call>{{"name": 3}}</tool_call><tool_call>{{"name": "f", "arguments": {CITY}}}</tool_call>',
        f'<tool_call><tool_call>{{"name": "f", "arguments": {CITY}}}</tool_call>',
        f'<tool_call>{{"name": "g<tool_call>{{"name": "f", "arguments": {CITY}}}</tool_call>',
        f'<tool_call>{{"name": "f", "arguments": 7}}<tool_call>{{"name": "f", "arguments": {CITY}}}</tool_call>',
    ],
)
def test_text_that_is_not_a_call_does_not_hide_a_later_call(text: str) -> None:
    content, calls = in_pieces(HERMES, text)
    assert calls == [("f", CITY)]
    assert "<tool_call>" in content


@pytest.mark.parametrize("broken", ['{"a": ', '{"a": "b', '{"a" "b"}', '{"a": [1}', "{'a': 1}"])
def test_a_call_with_broken_arguments_does_not_hide_a_later_call(broken: str) -> None:
    text = f'<tool_call>{{"name": "g", "arguments": {broken}</tool_call>\n' + HERMES.written([("f", CITY)])
    _, calls = in_pieces(HERMES, text)
    assert [name for name, _ in calls] == ["g", "f"]
    assert calls[1] == ("f", CITY)


@pytest.mark.parametrize(
    "missing", ['{"name": "f", "arguments": {"city": "Paris"}', '{"name": "f", "arguments": {"city": "Paris"}}}']
)
def test_a_missing_or_extra_brace_after_the_arguments_is_tolerated(missing: str) -> None:
    assert in_pieces(HERMES, f"<tool_call>{missing}</tool_call>") == ("", [("f", CITY)])


def test_a_call_without_arguments_has_none() -> None:
    for call in ('{"name": "f"}', '{"name": "f", "arguments": null}', '{"name": "f", "arguments": "{}"}'):
        assert in_pieces(HERMES, f"<tool_call>{call}</tool_call>") == ("", [("f", "{}")])


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Anna", "age": 3}',
        '[{"name": "Anna"}]',
        '{"name": "Anna", "parameters": "none"}',
        '{"name": "", "parameters": {}}',
        '{"parameters": {}}',
        "[1, 2]",
        "{}",
    ],
)
def test_json_that_is_not_a_call_is_content(text: str) -> None:
    assert in_pieces(LLAMA, text) == (text, [])


def test_a_line_break_in_a_string_of_arguments_is_escaped() -> None:
    _, ((_, arguments),) = in_pieces(HERMES, '<tool_call>{"name": "f", "arguments": {"a": "b\nc\\\nd"}}</tool_call>')
    assert json.loads(arguments) == {"a": "b\nc\nd"}


def test_a_name_that_is_not_a_string_is_not_a_call() -> None:
    text = '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'
    assert in_pieces(HERMES, text) == (text, [])


@pytest.mark.parametrize("call_format", FORMATS, ids=lambda one: one.name)
@pytest.mark.parametrize("calls", [[("weather", CITY)], [("weather", CITY), ("time", "{}")]])
def test_a_forced_call_cut_off_anywhere_leaks_no_mark(call_format: CallFormat, calls: list[tuple[str, str]]) -> None:
    text = call_format.written(calls)
    for length in range(len(text)):
        content, found = in_pieces(call_format, text[:length], is_forced=True)
        assert content == ""
        for (name, arguments), (whole_name, whole_arguments) in zip(found, calls, strict=False):
            assert name == whole_name
            assert whole_arguments.startswith(arguments)


@pytest.mark.parametrize("call_format", [HERMES, MISTRAL, MISTRAL_NAMED], ids=lambda one: one.name)
def test_a_free_call_cut_off_after_its_mark_leaks_no_mark(call_format: CallFormat) -> None:
    text = "Let me see. " + call_format.written([("weather", CITY)])
    begin = text.index(call_format.mark) + len(call_format.mark)
    for length in range(begin, len(text)):
        assert in_pieces(call_format, text[:length], is_cut_off=True)[0] == "Let me see. "
    assert in_pieces(call_format, text[:begin]) == (text[:begin], [])  # an answer may end with these words


def test_a_cut_off_call_keeps_the_name_and_the_arguments_so_far() -> None:
    for written, known in (
        ('{"name": "f"', ""),
        ('{"name": "f", "arguments": ', ""),
        ('{"name": "f", "arguments": {"a"', '{"a"'),
        ('{"arguments": {"a": 1}, "name": "f"', '{"a": 1}'),
        ('{"name": "f", "arguments": "{\\"a\\": \\"\\u00', '{"a": "'),
    ):
        assert in_pieces(HERMES, f"<tool_call>{written}", is_cut_off=True) == ("", [("f", known)])


def test_arguments_before_the_name_are_sent_at_once() -> None:
    reader = ToolCallParser(HERMES)
    assert reader.push('<tool_call>\n{"arguments": {"a": 1}, "name": "f"') == []
    (part,) = reader.push("}")
    assert [(call.name, call.arguments) for call in part.calls] == [("f", '{"a": 1}')]


@pytest.mark.slow
@pytest.mark.parametrize("call_format", FORMATS, ids=lambda one: one.name)
@pytest.mark.parametrize(
    "unit", ["<tool_call>", '<tool_call>{"', '<tool_call>{"a": "', "[TOOL_CALLS] [", " ", '{"a": ', "\\"]
)
def test_reading_takes_time_in_proportion_to_the_text(call_format: CallFormat, unit: str) -> None:
    def num_function_calls(count: int) -> int:
        calls = itertools.count()
        deltas = list(unit * count)
        sys.setprofile(lambda *_: next(calls))  # seconds would depend on what else the machine does
        try:
            read(call_format, deltas)
        finally:
            sys.setprofile(None)
        return next(calls)

    assert num_function_calls(2000) < 12 * num_function_calls(200)


def test_nested_functions_are_not_a_call() -> None:
    depth = sys.getrecursionlimit() * 2
    text = "<tool_call>" + '{"function": ' * depth + "1" + "}" * depth
    assert read(HERMES, [text]) == (text, [])


def test_arguments_in_a_text_with_half_a_surrogate_pair_are_no_call_if_they_must_be_written_anew() -> None:
    arguments = json.dumps('{"a": "\\ud83d\x01"}')
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
    assert read(HERMES, [text]) == (text, [])
