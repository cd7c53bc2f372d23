"""Constraints: the structured-output fields and required calls of a request, as a grammar for the engine.

JSON has the spacing of Python's json.dumps, one space after commas and colons: where white space is free, a model may
generate it without end.
"""

import json
from functools import partial
from typing import Any

from llguidance import LLMatcher

from caravan.server.generation.request_grammar import RequestGrammar
from caravan.server.generation.served_model import ServedModel
from caravan.server.http.errors import invalid
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.completions import CompletionRequest
from caravan.server.openai.protocol.structured_fields import Form
from caravan.server.openai.protocol.tools import Tool
from caravan.server.openai.structured_output.closed_schema import closed
from caravan.server.openai.structured_output.enforced_schema import enforced
from caravan.server.openai.structured_output.exact_grammar import JSON_OPTIONS, json_rules, needs_rules
from caravan.server.openai.structured_output.schema_error import SchemaError
from caravan.server.openai.tool_calls.call_format import call_format_of


async def checked_grammar(
    served: ServedModel, request: CompletionRequest | ChatRequest, key_name: str
) -> RequestGrammar | None:
    """Return the grammar that the request's text must match, or None.

    Raises ApiError if there is more than one, or if it cannot be compiled within the limits; ExecutorFull if too many
    grammars of the key wait to be checked; WorkerUnavailable.
    """
    form = request.forms[0] if request.forms else None
    required = request.required_tools if isinstance(request, ChatRequest) else []
    if form is None and not required:
        return None
    param = "tools" if required else form.param if form else ""
    if required and form is not None:
        names = [form.param, "tools"] if form.kind == "schema" else ["tools", form.param]
        raise invalid(f"`{'` and `'.join(names)}` cannot be combined; send one of them.", names[0])
    if form is not None and form.kind != "schema" and isinstance(request, ChatRequest) and request.shown_tools:
        raise invalid(f"`tools` and `{form.param}` cannot be combined; send one of them.", "tools")
    if request.min_tokens:
        raise invalid("`min_tokens` cannot be combined with a grammar; send one of them.", "min_tokens")
    if not served.tokenizer.eos_token_ids:
        raise invalid(f"`{param}` cannot be used: this model has no end token.", param)
    # A schema may have megabytes.
    grammar = await served.executors.tokenizing.run(key_name, partial(_grammar, served, request, form, param))
    problem = await served.grammar_check.find_problem(grammar, key_name)
    if problem:
        raise invalid(f"`{param}` cannot be used: {problem}.", param)
    return RequestGrammar(grammar, param)


def _grammar(served: ServedModel, request: CompletionRequest | ChatRequest, form: Form | None, param: str) -> str:
    """Return the grammar of a form, of calls, or of both; raises ApiError for a schema that cannot be enforced."""
    tools = request.shown_tools if isinstance(request, ChatRequest) else []
    try:
        if isinstance(request, ChatRequest) and request.required_tools:
            return _grammar_of_calls(served, request, request.required_tools)
        assert form is not None
        if form.kind == "regex":
            return LLMatcher.grammar_from_regex(form.value)
        if form.kind == "grammar":
            return LLMatcher.grammar_from_lark(form.value)
        if form.kind == "choice":
            return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, form.value)))
        if isinstance(request, ChatRequest) and tools:
            return _grammar_of_calls(served, request, tools, otherwise=form.value)
        return grammar_of_schema(form.value)
    except SchemaError as error:
        raise invalid(f"`{param}` cannot be used: {error}.", param) from None


def _grammar_of_calls(
    served: ServedModel, request: ChatRequest, tools: list[Tool], otherwise: dict[str, Any] | None = None
) -> str:
    """Return the grammar of calls of some of these functions, or of JSON of the schema `otherwise`."""
    parameters = {tool.function.name: _prepared(tool.arguments_schema) for tool in tools}
    several = request.allows_several_calls
    answer = None if otherwise is None else _prepared(otherwise)
    call_format = call_format_of(served.chat_template)
    return LLMatcher.grammar_from_lark(call_format.grammar(parameters, allows_several=several, otherwise=answer))


def grammar_of_schema(schema: dict[str, Any]) -> str:
    """Return the grammar of the JSON texts that a schema allows; raises SchemaError if it cannot be enforced."""
    prepared = _prepared(schema)
    if needs_rules(prepared):
        return LLMatcher.grammar_from_lark("\n".join(json_rules("start", prepared)))
    return LLMatcher.grammar_from_json_schema(json.dumps({**prepared, "x-guidance": JSON_OPTIONS}))


def _prepared(schema: dict[str, Any]) -> dict[str, Any]:
    if "x-guidance" in schema:
        raise SchemaError("its schema has the key x-guidance")
    return closed(enforced(schema))
