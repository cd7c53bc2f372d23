"""CustomInput: the text in the arguments of the function that represents a custom tool, in chunks of any size."""

import json

import pytest

from caravan.server.openai.protocol.custom_input import CustomInput, arguments_of_input, input_of_arguments

ARGUMENTS = [
    arguments_of_input('a "quoted"\nline \\ \u00e9 \U0001f600'),
    json.dumps({"input": "\U0001f600\n\ud83d x"}),
    '{"input": "a\\ud83d',
    '{"input": "a\\ud83d"}',
    '{"input": "\\ud83d\\ud83d\\ude00"}',
    ' {\n"input" : "x\\q\\u12\\u00e9" , "more": "y"}',
    '{"other": 1, "input": "late"}',
    '{"input": ""}',
    '{"input": "a", "input": "b"}',
    '{"input": "cut \\u00',
    '{"input": "cut \\',
    '{"input": 5}',
    "no JSON",
    "[" * 10_000,
    "",
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("length", [1, 2, 5])
def test_an_input_in_chunks_is_the_whole_input(arguments: str, length: int) -> None:
    reader = CustomInput()
    parts = [reader.push(arguments[start : start + length]) for start in range(0, len(arguments), length)]
    parts.append(reader.finish())
    assert "".join(parts) == reader.text == input_of_arguments(arguments)
    reader.text.encode()  # no half of a pair


def test_an_input_arrives_with_its_arguments() -> None:
    reader = CustomInput()
    assert [reader.push(chunk) for chunk in ('{"input": "a', "b\\", "nc", '"}')] == ["a", "b", "\nc", ""]
    assert input_of_arguments(ARGUMENTS[4]) == "\ufffd\U0001f600"
    assert input_of_arguments(ARGUMENTS[5]) == "x\\q\\u12\u00e9"
