"""Schemas that cannot be enforced are refused, and the part that cannot is named."""

import re
from typing import Any

import pytest

from caravan.server.openai.structured_output import enforced_schema
from caravan.server.openai.structured_output.enforced_schema import enforced
from caravan.server.openai.structured_output.schema_error import SchemaError
from tests.support.schema_samples import Schema

ANY = {"type": "object", "additionalProperties": {}}


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "string"}}, "`not`"),
        ({"if": {"type": "string"}, "then": {"minLength": 1}}, "`if`"),
        ({"contains": {"type": "null"}}, "`contains`"),
        ({"type": "array", "uniqueItems": True}, "`uniqueItems`"),
        ({"dependentRequired": {"a": ["b"]}}, "`dependentRequired`"),
        ({"dependentSchemas": {"a": {"required": ["b"]}}}, "`dependentSchemas`"),
        ({"dependencies": {"a": ["b"]}}, "`dependencies`"),
        ({"propertyNames": {"maxLength": 3}}, "`propertyNames`"),
        ({"anyOf": [ANY], "unevaluatedProperties": False}, "`unevaluatedProperties`"),
        ({"anyOf": [{"items": {}}], "unevaluatedItems": False}, "`unevaluatedItems`"),
        ({"$dynamicRef": "#a"}, "`$dynamicRef`"),
        ({"oneOf": [{"type": "integer"}, {"minimum": 3}]}, "`oneOf`"),
        ({"type": "object", "minProperties": 3, "required": ["a"]}, "`minProperties`"),
        ({"type": "string", "format": "phone"}, "its `format` is "),
        ({"type": "frob"}, "Invalid type"),
        ({"type": "string", "pattern": "a(?!b)"}, "a lookaround or a flag"),
        ({"type": "string", "maxlength": 3}, "Did you mean `maxLength`?"),
        ({"type": "string", "max_length": 3}, "Did you mean `maxLength`?"),
        ({"type": "object", "requierd": ["a"]}, "Did you mean `required`?"),
        ({"$ref": "https://example.com/schema.json"}, "nothing is fetched"),
        ({"$ref": "#/$defs/missing"}, "not in the schema"),
        ({"properties": {"a": {"$id": "a", "properties": {"b": {"$ref": "#/c"}}}}, "c": {}}, "`$id`"),
        ({"type": "string", "minLength": -1}, "`minLength`"),
        ({"type": "integer", "minimum": "3"}, "`minimum`"),
        ({"enum": []}, "no value"),
        ({"properties": {"a": 3}}, "an object or a boolean"),
        ({"properties": [1]}, "`properties` is [1]; it must be an object"),
        ({"required": ["a", 1]}, "it must be a list of names"),
        ({"prefixItems": {"a": 1}}, "`prefixItems` is"),
        ({"anyOf": {}}, "`anyOf` is"),
        ({"type": []}, "`type` is []"),
        ({"enum": "a"}, "`enum` is"),
        ({"enum": ["\x00", {"a": ["\x01"]}]}, "control characters"),
        ({"$ref": 3}, "`$ref` is 3; it must be a string"),
        ({"$ref": "#/$defs/a", "$defs": {"a": 3}}, "which is not a schema"),
        ({"$ref": "#/$defs" + "/a" * 2000}, "a path of 2001 parts"),
        ({"$ref": "#/$defs/a/b", "$defs": {"a": {"$id": "a", "b": {}}}}, "a path through a schema with its own `$id`"),
        ({"anyOf": [{"not": {"type": "string"}}, {"uniqueItems": True}]}, "`uniqueItems`"),
        ({"patternProperties": {"^(?=.*[0-9])[a-z0-9]+$": {}}}, "has a lookahead"),
        ({"propertyNames": {"pattern": "^a"}, "properties": {"a": {}}}, "`propertyNames`"),
        ({"allOf": [{"anyOf": [{}]}], "unevaluatedProperties": False}, "`unevaluatedProperties`"),
        ({"allOf": [{}], "unevaluatedProperties": {"type": "null"}}, "`unevaluatedProperties`"),
        ({"allOf": [{"properties": {}}] * 70, "unevaluatedProperties": False}, "`unevaluatedProperties`"),
        ({"type": "integer", "const": 3, "minimum": 4}, "no value"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(schema: Schema, named: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(named)):
        enforced(schema)


@pytest.mark.parametrize(
    "branches",
    [
        [{"type": "object"}, {"type": "object", "required": ["a"]}],
        [{"$ref": "#/missing"}, {"type": "null"}],
        [{"allOf": [{"allOf": [{}] * 100}] * 2}, {"type": "null"}],
        [3, {"type": "null"}],
    ],
)
def test_one_of_schemas_that_may_overlap_or_cannot_be_compared_is_refused(branches: list[Any]) -> None:
    with pytest.raises(SchemaError):
        enforced({"oneOf": branches})


def test_a_schema_has_limits_of_depth_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforced_schema, "_MAX_DEPTH", 3)
    monkeypatch.setattr(enforced_schema, "_MAX_SCHEMAS", 20)
    with pytest.raises(SchemaError, match="nested more than 3 levels deep"):
        enforced({"items": {"items": {"items": {"items": {}}}}})
    with pytest.raises(SchemaError, match="more than 20 schemas"):
        enforced({"anyOf": [{} for _ in range(21)]})


def test_a_definition_may_be_a_boolean_or_fail_wherever_it_is_used() -> None:
    assert enforced({"$ref": "#/$defs/a", "$defs": {"a": True}}) == {"$ref": "#/$defs/0", "$defs": {"0": {}}}
    failing = {"$defs": {"a": {"not": {"type": "null"}}}}
    with pytest.raises(SchemaError, match="`not`"):
        enforced({"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}], **failing})
    made = enforced({"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}, {"$ref": "#/$defs/a"}], **failing})
    assert made["anyOf"] == [{"type": "null"}]


@pytest.mark.slow
def test_references_without_end_and_schemas_without_end_are_refused() -> None:
    chain = {str(index): {"items": {"$ref": f"#/$defs/{index + 1}"}} for index in range(500)}
    with pytest.raises(SchemaError, match="nested more than"):
        enforced({"$ref": "#/$defs/0", "$defs": {**chain, "500": {}}})
    with pytest.raises(SchemaError, match="more than 20000 schemas"):
        enforced({"anyOf": [{} for _ in range(20_001)]})
    with pytest.raises(SchemaError, match="more than 200 unknown keywords"):
        enforced({f"note{number:x}zzz": 1 for number in range(1000)})


def test_multiples_that_the_library_cannot_combine_are_refused() -> None:
    with pytest.raises(SchemaError, match="common multiples"):
        enforced({"type": "integer", "multipleOf": 100_000, "allOf": [{"multipleOf": 99_999}]})
