"""Constraints: the form that a request prescribes for its text, as a grammar for the engine.

JSON comes as Python's json.dumps writes it, with a space after commas and colons and none else: free white space would
let a model write nothing else for ever.
"""

import json
from functools import partial
from typing import Any

from llguidance import LLMatcher

from server.openai.closed_schema import closed
from server.openai.errors import invalid
from server.openai.response_format import JsonObjectFormat, JsonSchemaFormat
from server.openai.schemas import ChatRequest, CompletionRequest
from server.openai.tool_schemas import Tool
from server.served_model import ServedModel


async def checked_grammar(served: ServedModel, request: CompletionRequest | ChatRequest, key_name: str) -> str:
    """Return the grammar that the request's text must keep to, empty if there is none.

    Raises ApiError if there is more than one, or if it cannot be compiled within the limits; ExecutorFull if too many
    grammars of the key wait to be checked; WorkerUnavailable.
    """
    wanted = partial(_wanted_grammar, served, request)
    has_schema = request.response_format is not None or (isinstance(request, ChatRequest) and bool(request.tools))
    # A schema may have megabytes.
    param, grammar = await served.executors.tokenizing.run(key_name, wanted) if has_schema else wanted()
    problem = await served.grammar_check.find_problem(grammar, key_name) if grammar else ""
    if problem:
        raise invalid(f"`{param}` cannot be used: {problem}.", param)
    return grammar


def _wanted_grammar(served: ServedModel, request: CompletionRequest | ChatRequest) -> tuple[str, str]:
    """Return a field and the grammar that it asks for, both empty if there is none."""
    wanted: dict[str, str] = {}
    schema = _schema_of(request)
    tools = request.shown_tools if isinstance(request, ChatRequest) else []
    if isinstance(request, ChatRequest) and tools and schema is not None and not request.required_tools:
        wanted["response_format"] = _grammar_of_calls(served, request, tools, otherwise=schema)
    elif schema is not None:
        wanted["response_format"] = grammar_of_schema(schema)
    if isinstance(request, ChatRequest) and request.required_tools:
        wanted["tools"] = _grammar_of_calls(served, request, request.required_tools)
    elif tools and (request.regex is not None or request.grammar is not None):
        raise invalid("`tools` cannot be called in a text of `regex` or `grammar`; send one of them.", "tools")
    if request.regex is not None:
        wanted["regex"] = LLMatcher.grammar_from_regex(request.regex)
    if request.grammar is not None:
        wanted["grammar"] = LLMatcher.grammar_from_lark(request.grammar)
    if len(wanted) > 1:
        raise invalid(f"`{'` and `'.join(wanted)}` exclude each other; send one of them.", next(iter(wanted)))
    if wanted and request.min_tokens:
        raise invalid("`min_tokens` excludes a grammar, by which a text ends when it is complete.", "min_tokens")
    for param, grammar in wanted.items():
        if not served.tokenizer.eos_token_ids:
            raise invalid(f"`{param}` cannot be used: this model has no token that ends a text.", param)
        return param, grammar
    return "", ""


def _schema_of(request: CompletionRequest | ChatRequest) -> dict[str, Any] | None:
    """Return the schema that `response_format` asks for, None if the text is free."""
    match request.response_format:
        case JsonObjectFormat():
            return {"type": "object"}
        case JsonSchemaFormat(json_schema=named):
            return named.definition
    return None


def _grammar_of_calls(
    served: ServedModel, request: ChatRequest, tools: list[Tool], otherwise: dict[str, Any] | None = None
) -> str:
    """Return the grammar of calls of some of these functions, or of JSON of the schema `otherwise`."""
    parameters = {tool.function.name: closed(tool.arguments_schema) for tool in tools}
    if any("x-guidance" in schema for schema in parameters.values()):
        raise invalid("`tools` cannot be used: a schema has the key x-guidance.", "tools")
    if otherwise is not None:
        check_guidance(otherwise)
        otherwise = closed(otherwise)
    several = request.allows_several_calls
    return LLMatcher.grammar_from_lark(
        served.call_format.grammar(parameters, allows_several=several, otherwise=otherwise)
    )


def check_guidance(schema: dict[str, Any]) -> None:
    """Raise ApiError if a schema tries to change the compiler."""
    if "x-guidance" in schema:
        raise invalid("`response_format` cannot be used: its schema has the key x-guidance.", "response_format")


def grammar_of_schema(schema: dict[str, Any]) -> str:
    """Return the grammar of the JSON texts that a schema allows; raises ApiError if it tries to change the compiler."""
    check_guidance(schema)
    return LLMatcher.grammar_from_json_schema(
        json.dumps(closed(schema)), {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    )
