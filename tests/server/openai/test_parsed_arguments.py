"""The arguments of earlier calls: an object that a prompt can have, or none."""

import pytest

from caravan.server.openai.protocol.tools import parsed_arguments


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", {}),
        ("  \n", {}),
        ("null", {}),
        ('{"a": [1.5, null]}', {"a": [1.5, None]}),
        ("[1]", None),
        ("{", None),
        ('{"a": NaN}', None),
        ('{"a": 1e999}', None),
        ('{"a": "\\ud800"}', None),
        ('{"a": ' * 2000 + "1" + "}" * 2000, None),
        ('{"<s>": 1}', None),
        ('{"a": {"x<s>": 1}}', None),
        ('{"a": "<s>"}', {"a": "<s>"}),
    ],
)
def test_arguments_are_an_object_without_special_tokens_in_its_keys(
    text: str, arguments: dict[str, object] | None
) -> None:
    assert parsed_arguments(text, ["<s>"]) == arguments
