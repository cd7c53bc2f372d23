"""CallFormat: detected from the template, and the grammar of its calls."""

import json

import jsonschema
import pytest
from llguidance import LLMatcher

from caravan.server.openai.tool_calls.call_format import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, CallFormat, format_of
from caravan.server.sandbox.grammar_check import GrammarCheck
from tests.scheduler.constrained_requests import constrained, constrained_engine
from tests.support.json_schemas import random_schemas
from tests.support.reading_calls import FORMATS, read
from tests.support.tiny_llama import run_to_end
from tests.support.transcript_text import text_of


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for t in tools %}<tool_call>{% endfor %}", HERMES),
        ("{{ '[TOOL_CALLS]' }}", MISTRAL),
        ("{{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' + call.function.arguments | tojson }}", MISTRAL_NAMED),
        ("{{ '<|python_tag|>' }}", LLAMA),
        ('{% if tools %}{"name": function name, "parameters": dictionary}{% endif %}', LLAMA),
        ("{{ messages }}", HERMES),
        ("", HERMES),
    ],
)
def test_the_format_is_read_from_the_template(template: str, expected: CallFormat) -> None:
    assert format_of(template) == expected


@pytest.mark.slow
@pytest.mark.parametrize("call_format", FORMATS, ids=lambda one: one.name)
def test_a_random_model_calls_functions_with_arguments_of_their_schemas(call_format: CallFormat) -> None:
    objects = [schema for schema in random_schemas(40) if schema.get("type") == "object"]
    tools = {f"function_{index}": schema for index, schema in enumerate(objects)}
    grammar = LLMatcher.grammar_from_lark(call_format.grammar(tools, allows_several=False))
    transcripts = run_to_end(constrained_engine(), [constrained(index, grammar) for index in range(20)])
    for transcript in transcripts.values():
        content, calls = read(call_format, [text_of(transcript)])
        assert content == ""
        ((name, arguments),) = calls
        jsonschema.validate(json.loads(arguments), tools[name], jsonschema.Draft202012Validator)


@pytest.mark.slow
@pytest.mark.parametrize("call_format", FORMATS, ids=lambda one: one.name)
async def test_parallel_calls_follow_the_grammar_if_allowed(call_format: CallFormat) -> None:
    tools = {"f": {"type": "object", "properties": {}, "additionalProperties": False}}
    lark = call_format.grammar(tools, allows_several=True)
    check = GrammarCheck()
    assert await check.find_problem(LLMatcher.grammar_from_lark(lark), "a") == ""
    check.close()
