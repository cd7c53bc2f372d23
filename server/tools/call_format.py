"""CallFormat: how a model writes tool calls, as its chat template shows.

Three ways are common. Hermes and Qwen put each call between <tool_call> and </tool_call>; Mistral writes [TOOL_CALLS]
and a list; Llama 3 answers with nothing but the call, in which the arguments are called parameters.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

JSON_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class CallFormat:
    """What stands around a call `{"name": ..., ARGUMENTS: {...}}`."""

    name: str
    opening: str  # before the first call
    separator: str  # between two
    closing: str  # behind the last
    arguments: str  # the key of the arguments
    is_whole_answer: bool = False  # a call begins the answer or does not come at all; no opening tells it

    def written(self, calls: Sequence[tuple[str, str]]) -> str:
        """Return the text of calls, each a name and its arguments in JSON."""
        return (
            self.opening
            + self.separator.join(
                f'{{"name": {json.dumps(name)}, "{self.arguments}": {arguments}}}' for name, arguments in calls
            )
            + self.closing
        )

    def grammar(
        self,
        parameters: Mapping[str, dict[str, Any]],
        *,
        allows_several: bool,
        otherwise: dict[str, Any] | None = None,
    ) -> str:
        """Return the Lark grammar of one call, or several, of functions with these JSON schemas of their arguments.

        With `otherwise` the text may also be JSON of that schema.
        """
        name = "start" if otherwise is None else "calls"
        rules = [f"{name}: {json.dumps(self.opening)} call"]
        if not self.opening:
            rules = [f"{name}: call"]
        if allows_several:
            rules[0] += f" ({json.dumps(self.separator)} call)*"
        if self.closing:
            rules[0] += f" {json.dumps(self.closing)}"
        rules.append("call: " + " | ".join(f"call{index}" for index in range(len(parameters))))
        for index, (name, schema) in enumerate(parameters.items()):
            head = f'{{"name": {json.dumps(name)}, "{self.arguments}": '
            rules.append(f'call{index}: {json.dumps(head)} arguments{index} "}}"')
            rules.append(f"arguments{index}: %json {json.dumps({**schema, 'x-guidance': JSON_SPACING})}")
        if otherwise is not None:
            rules += ["start: calls | answer", f"answer: %json {json.dumps({**otherwise, 'x-guidance': JSON_SPACING})}"]
        return "\n".join(rules)


HERMES = CallFormat("hermes", "<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", "arguments")
MISTRAL = CallFormat("mistral", "[TOOL_CALLS] [", ", ", "]", "arguments")
LLAMA = CallFormat("llama", "", "; ", "", "parameters", is_whole_answer=True)


def format_of(template: str) -> CallFormat:
    """Return the format that the source of a chat template shows; Hermes' where it shows none."""
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    if "<tool_call>" in template:
        return HERMES
    if "<|python_tag|>" in template or ('"parameters": ' in template and "tools" in template):
        return LLAMA
    return HERMES
