"""Grammars of JSON schemas.

JSON has the spacing of Python's json.dumps, one space after commas and colons: where white space is free, a model may
generate it without end.
"""

import json
from typing import Any

from llguidance import LLMatcher

from caravan.server.openai.structured_output.closed_schema import closed
from caravan.server.openai.structured_output.enforced_schema import enforced
from caravan.server.openai.structured_output.exact_grammar import JSON_OPTIONS, json_rules, needs_rules
from caravan.server.openai.structured_output.schema_error import SchemaError


def grammar_of_schema(schema: dict[str, Any]) -> str:
    """Return the grammar of the JSON texts that a schema allows; raises SchemaError if it cannot be enforced."""
    prepared = prepared_schema(schema)
    if needs_rules(prepared):
        return LLMatcher.grammar_from_lark("\n".join(json_rules("start", prepared)))
    return LLMatcher.grammar_from_json_schema(json.dumps({**prepared, "x-guidance": JSON_OPTIONS}))


def prepared_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema in the form that rules are made of; raises SchemaError if it cannot be enforced."""
    if "x-guidance" in schema:
        raise SchemaError("its schema has the key x-guidance")
    return closed(enforced(schema))
