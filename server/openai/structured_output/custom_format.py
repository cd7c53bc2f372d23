"""The formats of custom tools as rules for the arguments of the functions that represent them."""

from typing import Literal

from caravan.server.openai.structured_output.escaped_lark import escaped_rules
from caravan.server.openai.structured_output.escaped_pattern import escaped_pattern
from caravan.server.openai.tool_calls.call_format import Arguments


def arguments_of_format(syntax: Literal["lark", "regex"], definition: str, unique_name: str) -> Arguments:
    """Return the arguments of a function whose one string, `input`, is a text of a grammar or matches a pattern.

    No other rule begins with `unique_name`. Raises NotEnforceable.
    """
    if syntax == "lark":
        inner = escaped_rules(unique_name, definition)
    else:
        pattern, _ = escaped_pattern(definition, has_anchors=True)
        inner = [f"{unique_name}: /(?:{pattern})/"]
    return lambda name: [rf'{name}: "{{\"input\": \"" {unique_name} "\"}}"', *inner]
