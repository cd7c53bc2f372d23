"""Constraints: the structured-output fields and required calls of a request, as a grammar for the engine."""

import json
from collections.abc import Mapping
from functools import partial

from llguidance import LLMatcher

from caravan.server.generation.request_grammar import RequestGrammar
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.thought_splitter import Thoughts
from caravan.server.http.errors import invalid
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.completions import CompletionRequest
from caravan.server.openai.protocol.structured_fields import Form
from caravan.server.openai.structured_output.call_grammar import grammar_of_calls
from caravan.server.openai.structured_output.schema_error import SchemaError
from caravan.server.openai.structured_output.schema_grammar import grammar_of_schema
from caravan.server.openai.structured_output.thought_grammar import after_thought
from caravan.server.openai.tool_calls.call_format import Arguments


async def checked_grammar(
    served: ServedModel,
    request: CompletionRequest | ChatRequest,
    key_name: str,
    thoughts: Thoughts | None = None,
    inputs: Mapping[str, Arguments] | None = None,
) -> RequestGrammar | None:
    """Return the grammar that the request's text must match after its thought, or None.

    `inputs` has the arguments of functions that are enforced in every call, also in one that is not required.
    Raises ApiError if there is more than one, or if it cannot be compiled within the limits; ExecutorFull if too many
    grammars of the key wait to be checked; WorkerUnavailable.
    """
    form = request.forms[0] if request.forms else None
    required = request.required_tools if isinstance(request, ChatRequest) else []
    if form is None and not required and not inputs:
        return None
    param = form.param if form is not None and not required else "tools"
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
    grammar = await served.executors.tokenizing.run(
        key_name, partial(_grammar, served, request, form, param, inputs or {})
    )
    problem = await served.grammar_check.find_problem(grammar, key_name)
    if problem:
        raise invalid(f"`{param}` cannot be used: {problem}.", param)
    if thoughts is not None and thoughts.start != "closed":
        wrapping = partial(after_thought, grammar, thoughts, served.tokenizer.special_tokens)
        grammar = await served.executors.tokenizing.run(key_name, wrapping)
    return RequestGrammar(grammar, param)


def _grammar(
    served: ServedModel,
    request: CompletionRequest | ChatRequest,
    form: Form | None,
    param: str,
    inputs: Mapping[str, Arguments],
) -> str:
    """Return the grammar of a form, of calls, or of both; raises ApiError for a schema that cannot be enforced."""
    try:
        if isinstance(request, ChatRequest) and request.shown_tools and (form is None or form.kind == "schema"):
            return grammar_of_calls(served, request, inputs, otherwise=None if form is None else form.value)
        assert form is not None
        if form.kind == "regex":
            return LLMatcher.grammar_from_regex(form.value)
        if form.kind == "grammar":
            return LLMatcher.grammar_from_lark(form.value)
        if form.kind == "choice":
            return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, form.value)))
        return grammar_of_schema(form.value)
    except SchemaError as error:
        raise invalid(f"`{param}` cannot be used: {error}.", param) from None
