"""Grammars of calls of functions: where one is required, and where calls are optional but some inputs are enforced."""

import json
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher

from caravan.server.generation.served_model import ServedModel
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.structured_output.schema_grammar import prepared_schema
from caravan.server.openai.structured_output.schema_pattern import literal_pattern
from caravan.server.openai.tool_calls.call_format import Arguments, CallFormat, call_format_of

_ANY_OBJECT = json.dumps({"type": "object"})


def grammar_of_calls(
    served: ServedModel, request: ChatRequest, inputs: Mapping[str, Arguments], otherwise: dict[str, Any] | None = None
) -> str:
    """Return the grammar of calls of the shown functions, or of JSON of the schema `otherwise`.

    `inputs` has the arguments of some functions, which stand for their schemas. Where calls are optional and there is
    no schema, the text is free and so are the arguments of other functions. Raises SchemaError.
    """
    tools = request.required_tools or request.shown_tools
    call_format = call_format_of(served.chat_template)
    is_free = not request.required_tools and otherwise is None
    arguments = {
        tool.function.name: inputs.get(tool.function.name)
        or (_any_object if is_free else prepared_schema(tool.arguments_schema))
        for tool in tools
    }
    lark = call_format.grammar(
        arguments,
        allows_several=request.allows_several_calls,
        otherwise=None if otherwise is None else prepared_schema(otherwise),
        free_text=free_text_rules(call_format, served.tokenizer.special_tokens) if is_free else (),
    )
    return LLMatcher.grammar_from_lark(lark)


def free_text_rules(call_format: CallFormat, special_tokens: Mapping[str, int]) -> list[str]:
    """Return rules for a text without calls, or with `calls` at its end.

    The mark of a call is not part of the text. As a special token it is no text for a grammar, so it is named by its
    id. Without a mark, a text that begins as a call does is one.
    """
    mark = call_format.mark
    rules = ["start: calls | TEXT", r"SPACE: /[ \t\r\n]*/"]
    other = rf"~/(?s:.*){literal_pattern(mark)}(?s:.*)/"
    marks = [json.dumps(mark), *([f"<[{special_tokens[mark]}]>"] if mark in special_tokens else [])]
    if call_format.is_whole_answer:
        rules.append(rf"TEXT: /\s*([^\s\{{\[](?s:.*)|\[(\s*|\s*[^\s\{{](?s:.*)))?/ & {other}")
        return [*rules, f"opening: SPACE (({' | '.join(marks)}) SPACE)?"]
    rules.append(f"TEXT: /(?s:.*)/ & {other}")
    rules.append(f"open_text[suffix={json.dumps(mark)}]: /(?s:.*)/")
    marked = " | ".join(["open_text", *(f"TEXT {one}" for one in marks[1:])])
    rest = call_format.opening.removeprefix(mark).strip()
    return [*rules, f"opening: ({marked}) SPACE {json.dumps(rest)}"]


def _any_object(name: str) -> list[str]:
    return [f"{name}: %json {_ANY_OBJECT}"]
