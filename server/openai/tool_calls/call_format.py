"""CallFormat: how a model writes tool calls, as its chat template shows.

Four ways are common. Hermes and Qwen put each call between <tool_call> and </tool_call>; Mistral writes [TOOL_CALLS]
and a list, or, in newer models, [TOOL_CALLS]name[ARGS] and the arguments; Llama 3 writes only the call, with
the key parameters instead of arguments.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.server.openai.structured_output.exact_grammar import json_rules
from caravan.server.sandbox.chat_template import ChatTemplate
from caravan.server.sandbox.template_shape import SHORT_ID_LENGTH, random_letters

TOOL_CALLS = "[TOOL_CALLS]"  # Mistral's mark
PYTHON_TAG = "<|python_tag|>"  # Llama 3 may write it before a call

# What a function's arguments can be: an enforced schema, or what returns rules for them, the first of the given name.
Arguments = dict[str, Any] | Callable[[str], list[str]]


@dataclass(frozen=True)
class CallFormat:
    """The text around a call `{"name": ..., ARGUMENTS: {...}}`, or around `name[ARGS]{...}`."""

    name: str
    opening: str  # before the first call
    separator: str  # between two
    closing: str  # after the last
    arguments: str  # the key of the arguments
    is_whole_answer: bool = False  # a call without a mark begins the text
    has_bare_name: bool = False  # the name stands before the arguments instead of in an object with them
    has_short_ids: bool = False  # the format's templates take call ids of nine letters and digits only

    @property
    def mark(self) -> str:
        """The text that begins a call anywhere in the output."""
        return "".join(self.opening.split()[:1]) or PYTHON_TAG

    @property
    def closing_mark(self) -> str:
        """The text that a model writes after a call, perhaps empty."""
        return self.closing.strip() if self.mark.startswith("<tool") else ""

    def new_call_id(self) -> str:
        """Return a random id for a call, in the form that the model's chat template takes."""
        return random_letters(SHORT_ID_LENGTH) if self.has_short_ids else f"call_{random_letters(24)}"

    def written(self, calls: Sequence[tuple[str, str]]) -> str:
        """Return the text of calls, each a name and its arguments in JSON."""
        written = [f"{self._head(name)}{arguments}{self._tail}" for name, arguments in calls]
        return self.opening + self.separator.join(written) + self.closing

    def _head(self, name: str) -> str:
        if self.has_bare_name:
            return f"{name}[ARGS]"
        return f'{{"name": {json.dumps(name)}, "{self.arguments}": '

    @property
    def _tail(self) -> str:
        return "" if self.has_bare_name else "}"

    def grammar(
        self,
        arguments: Mapping[str, Arguments],
        *,
        allows_several: bool,
        otherwise: dict[str, Any] | None = None,
        free_text: Sequence[str] = (),
    ) -> str:
        """Return the Lark grammar of one call, or several, of functions with these arguments.

        With `otherwise` the text may also be JSON of that schema. `free_text` has rules that define `start` by `calls`,
        and `opening`, what is before the first call.
        """
        name = "calls" if otherwise is not None or free_text else "start"
        opening = "opening" if free_text else json.dumps(self.opening)
        rules = [f"{name}: {opening} call" if free_text or self.opening else f"{name}: call"]
        if allows_several:
            rules[0] += f" ({json.dumps(self.separator)} call)*"
        if self.closing:
            rules[0] += f" {json.dumps(self.closing)}"
        rules.append("call: " + " | ".join(f"call{index}" for index in range(len(arguments))))
        for index, (name, allowed) in enumerate(arguments.items()):
            tail = f" {json.dumps(self._tail)}" if self._tail else ""
            rules.append(f"call{index}: {json.dumps(self._head(name))} arguments{index}{tail}")
            name = f"arguments{index}"
            rules += json_rules(name, allowed) if isinstance(allowed, dict) else allowed(name)
        if otherwise is not None:
            rules += ["start: calls | answer", *json_rules("answer", otherwise)]
        return "\n".join([*rules, *free_text])


HERMES = CallFormat("hermes", "<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", "arguments")
MISTRAL = CallFormat("mistral", "[TOOL_CALLS] [", ", ", "]", "arguments", has_short_ids=True)
MISTRAL_NAMED = CallFormat(
    "mistral named", "[TOOL_CALLS]", "[TOOL_CALLS]", "", "arguments", has_bare_name=True, has_short_ids=True
)
LLAMA = CallFormat("llama", "", "; ", "", "parameters", is_whole_answer=True)


def format_of(template: str) -> CallFormat:
    """Return the format in the source of a chat template; Hermes' format if it has none."""
    if "[TOOL_CALLS]" in template:
        return MISTRAL_NAMED if "[ARGS]" in template else MISTRAL
    if "<tool_call>" in template:
        return HERMES
    if PYTHON_TAG in template or ('"parameters": ' in template and "tools" in template):
        return LLAMA
    return HERMES


def call_format_of(template: ChatTemplate | None) -> CallFormat:
    """Return a model's call format. Without tools in its chat template it is Hermes', which prompts then describe."""
    template = None if template is None else template.for_tools()
    if template is None or not template.knows_tools:
        return HERMES
    call_format = format_of(template.source)
    return replace(call_format, has_short_ids=call_format.has_short_ids or template.shape.takes_short_ids_only)


def call_token_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the special tokens that open or close tool calls, which a parser must see."""
    texts = (TOOL_CALLS, "[CALL_ID]", "[ARGS]", PYTHON_TAG, "<tool_call>", "</tool_call>")
    special = tokenizer.special_tokens
    return frozenset(special[text] for text in texts if text in special)
