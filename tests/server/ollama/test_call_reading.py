"""CallReading: whole calls and content, wherever the text is cut."""

from typing import Any

import pytest

from caravan.server.ollama.call_reading import CallReading
from caravan.server.openai.tool_calls.call_format import HERMES, LLAMA, MISTRAL, CallFormat

CALLS = [("weather", '{"city": "Zürich", "days": [1, 2.5]}'), ("time", "{}")]


def read(call_format: CallFormat, pieces: list[str]) -> tuple[str, list[tuple[str, Any]]]:
    reading = CallReading(call_format)
    results = [reading.push(piece, None) for piece in pieces[:-1]] + [reading.push(pieces[-1], "stop")]
    calls = [(call.function.name, call.function.arguments) for _, found in results for call in found]
    return "".join(content for content, _ in results), calls


@pytest.mark.parametrize("call_format", [HERMES, MISTRAL, LLAMA], ids=lambda one: one.name)
def test_calls_do_not_depend_on_where_the_text_is_cut(call_format: CallFormat) -> None:
    before = "" if call_format.is_whole_answer else "Let me see."
    text = before + call_format.written(CALLS[: 1 if call_format.is_whole_answer else 2])
    expected = read(call_format, [text])
    assert expected[1][0] == ("weather", {"city": "Zürich", "days": [1, 2.5]})
    for at in range(len(text) + 1):
        assert read(call_format, [text[:at], text[at:]]) == expected
    assert read(call_format, [*text]) == expected


def test_arguments_that_are_no_object_are_content() -> None:
    text = HERMES.written([("weather", '["Paris"]')])
    content, calls = read(HERMES, [text])
    assert calls == []
    assert '"weather"' in content
    assert '["Paris"]' in content


def test_text_after_such_a_call_follows_it_wherever_the_text_is_cut() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call> and so on'
    expected = read(HERMES, [text])
    assert expected[0].index("NaN") < expected[0].index("and so on")
    for at in range(len(text) + 1):
        assert read(HERMES, [text[:at], text[at:]]) == expected
    assert read(HERMES, [*text]) == expected
