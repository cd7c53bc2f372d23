"""A schema is enforced as it is meant, or refused by name: what its grammar accepts is valid, judged by jsonschema."""

import itertools
import json
import random
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

import jsonschema
import pytest

from caravan.server.openai.structured_output.closed_schema import closed
from caravan.server.openai.structured_output.enforced_schema import enforced
from caravan.server.openai.structured_output.schema_error import SchemaError
from caravan.server.openai.structured_output.schema_keywords import ANNOTATIONS
from tests.support.schema_samples import Schema, accepts, documents, matcher, sampled_texts, values, written

# These make a schema narrower on purpose, or are refused where a part of `anyOf` is then left out.
NARROWING = re.compile(
    r'"(?:not|contains|uniqueItems|dependentRequired|oneOf|propertyNames|unevaluated\w+|additionalItems|format'
    r'|minProperties|maxProperties)"'
)


def is_valid(schema: Schema, text: str) -> bool:
    """Return whether a text is valid with its numbers as decimals, and as float64 where division is exact there."""
    as_decimals = json.loads(json.dumps(schema), parse_float=Decimal)
    try:
        exactly = jsonschema.Draft202012Validator(as_decimals).is_valid(json.loads(text, parse_float=Decimal))
    except InvalidOperation:  # 1e999999 is no multiple of anything in 28 digits
        exactly = True
    if "multipleOf" in json.dumps(schema):
        return exactly
    return exactly and jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))


def compiled(seeds: Iterator[int]) -> Iterator[tuple[Schema, Any, random.Random]]:
    """Yield random schemas that are not refused, with their matchers."""
    for seed in seeds:
        rng = random.Random(seed)
        schema = documents(rng)
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
            made = matcher(schema)
        except (jsonschema.SchemaError, ValueError):
            continue
        yield schema, made, rng


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(5))
@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
def test_what_the_grammar_of_a_random_schema_accepts_is_valid(batch: int) -> None:
    num_schemas = num_texts = 0
    for schema, made, rng in compiled(iter(range(batch * 150, batch * 150 + 150))):
        num_schemas += 1
        accepted = [text for text in (written(values(rng)) for _ in range(30)) if accepts(made, text)]
        for text in [*accepted, *sampled_texts(made, rng, 4)]:
            num_texts += 1
            assert is_valid(schema, text), (schema, text)
    assert num_schemas > 30
    assert num_texts > 300


def orders(value: Any) -> Iterator[Any]:
    """Yield a value with the properties of its objects in every order."""
    if isinstance(value, list):
        yield from map(list, itertools.product(*[list(orders(item)) for item in value]))
    elif isinstance(value, dict):
        for names in itertools.permutations(value):
            for items in itertools.product(*[list(orders(value[name])) for name in names]):
                yield dict(zip(names, items, strict=True))
    else:
        yield value


def is_plain(value: Any) -> bool:
    """Return whether a value has only numbers and characters that every reader takes alike."""
    if isinstance(value, dict | list):
        return all(map(is_plain, value.values() if isinstance(value, dict) else value))
    if isinstance(value, str):
        return value.isascii() and value.isprintable()
    return not isinstance(value, int | float) or ("e" not in repr(value) and abs(value) < 10**15)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
def test_what_is_valid_is_accepted_in_one_order_of_properties() -> None:
    num_values = 0
    for schema, made, rng in compiled(iter(range(500))):
        rewritten = enforced(schema)
        if NARROWING.search(json.dumps(schema)) or closed(rewritten) != rewritten:
            continue
        validator = jsonschema.Draft202012Validator(schema)
        for value in filter(is_plain, (values(rng) for _ in range(30))):
            if validator.is_valid(value):
                num_values += 1
                texts = map(written, itertools.islice(orders(value), 200))
                assert any(accepts(made, text) for text in texts), (schema, value)
    assert num_values > 300


PAIR = [{"type": "object", "properties": {"t": {"const": tag}}, "required": ["t"]} for tag in ("x", "y")]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "object", "propertyNames": {"type": "string"}}, {"type": "object"}),
        ({"type": "object", "propertyNames": {}}, {"type": "object"}),
        ({"type": "object", "propertyNames": True}, {"type": "object"}),
        ({"propertyNames": {"type": "string", "description": "any"}}, {}),
        ({"additionalProperties": {}, "unevaluatedProperties": True, "required": [], "properties": {}}, {}),
        ({"items": {}, "uniqueItems": False, "minItems": 0, "unevaluatedItems": True, "prefixItems": []}, {}),
        ({"minLength": 0, "maxLength": 9007199254740991, "minProperties": 0.0, "dependentRequired": {}}, {}),
        ({"contains": {"type": "null"}, "minContains": 0}, {}),
        ({"if": {"type": "null"}}, {}),
        ({"then": False, "not": False, "dependentSchemas": {"a": True}, "dependencies": {}}, {}),
        (dict.fromkeys(ANNOTATIONS - {"$id", "id", "$defs", "definitions"}, "text"), {}),
        ({"type": "string", "x-order": 3, "ui:widget": "color", "enumNames": ["a"]}, {"type": "string"}),
        ({"type": "string", "format": "password"}, {"type": "string"}),
        ({"type": "array", "maxItems": 2.0, "minItems": 1.0}, {"type": "array", "minItems": 1, "maxItems": 2}),
        ({"type": "array", "maxItems": 1, "uniqueItems": True}, {"type": "array", "maxItems": 1}),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ({"type": ["integer", "number"]}, {"type": "number"}),
        (
            {"type": "array", "items": [{"type": "null"}], "additionalItems": False},
            {"type": "array", "prefixItems": [{"type": "null"}], "items": False},
        ),
        (
            {"type": "array", "prefixItems": [{"type": "null"}], "additionalItems": False},
            {"type": "array", "prefixItems": [{"type": "null"}]},
        ),
        ({"type": "integer", "exclusiveMinimum": 3, "maximum": 9.5}, {"type": "integer", "minimum": 4, "maximum": 9}),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, {"type": "integer", "minimum": 4}),
        ({"type": "integer", "format": "int8"}, {"type": "integer", "minimum": -128, "maximum": 127}),
        (
            {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "null"}},
            {
                "type": "object",
                "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
                "additionalProperties": False,
            },
        ),
        (
            {"type": "object", "propertyNames": {"pattern": "^a"}, "additionalProperties": {"type": "null"}},
            {"type": "object", "patternProperties": {"^a": {"type": "null"}}, "additionalProperties": False},
        ),
        ({"anyOf": [{"type": "null"}, {"not": {"type": "string"}}]}, {"anyOf": [{"type": "null"}]}),
        ({"anyOf": [{"type": "null"}, {"not": {}}]}, {"anyOf": [{"type": "null"}, False]}),
        ({"anyOf": [{"type": "null"}], "oneOf": [True]}, {"anyOf": [{"type": "null"}], "allOf": [{"anyOf": [True]}]}),
        ({"enum": [1, True, "a", [1]], "const": 1.0}, {"enum": [1]}),
        ({"enum": [[1, {"a": 2}], [1, {"a": 3}]], "const": [1.0, {"a": 2}]}, {"enum": [[1, {"a": 2}]]}),
        ({"type": ["array", "boolean", "null"], "enum": [None, [], {}, True, 1, "a"]}, [None, [], True]),
        ({"type": ["integer"], "enum": [1, 2.0, 2.5]}, [1, 2]),
        ({"type": "number", "enum": [1, 2.5, "a"], "exclusiveMaximum": 2.5}, [1]),
        ({"type": ["integer", "null"], "minimum": 3, "maximum": 2}, {"type": ["null"]}),
        (
            {"type": "object", "propertyNames": {"$ref": "#/$defs/n"}, "$defs": {"n": {"const": "a"}}},
            {"type": "object", "properties": {"a": True}, "additionalProperties": False},
        ),
        (
            {"type": "object", "allOf": [{"properties": {"b": {}}}, True], "unevaluatedProperties": False},
            {
                "type": "object",
                "properties": {"b": True},
                "additionalProperties": False,
                "allOf": [{"properties": {"b": {}}}, True],
            },
        ),
    ],
)
def test_keywords_that_exclude_nothing_are_dropped_and_old_ones_converted(
    schema: Schema, expected: Schema | list[Any]
) -> None:
    made = enforced(schema)
    assert (made["enum"] if isinstance(expected, list) else made) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": PAIR},
        {"$defs": {"x": PAIR[0], "y": PAIR[1]}, "oneOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}]},
        {"oneOf": [{"allOf": [PAIR[0]]}, {"anyOf": [PAIR[1], {"type": "null"}]}]},
        {"oneOf": [{"oneOf": [PAIR[0]]}, PAIR[1], False]},
        {"oneOf": [*PAIR, {"allOf": [{"$ref": "#/oneOf/0"}, {"type": "array"}]}]},
        {
            "oneOf": [
                {"type": "object", "properties": {"t": {"const": "x"}}, "required": ["t"]},
                {
                    "type": "object",
                    "properties": {"t": {"enum": ["y", None, True, 1, ["a"], {"b": 2}]}},
                    "required": ["t"],
                },
            ],
            "properties": {"t": {"type": "string"}},
        },
        {
            "oneOf": [
                {"type": "object", "properties": {"t": {}}, "required": ["t"], "additionalProperties": False},
                {"type": "object", "properties": {"u": {}}, "required": ["u"], "additionalProperties": False},
            ],
            "properties": {"t": {"enum": ["x", "y"]}},
        },
    ],
)
def test_one_of_schemas_with_different_tags_means_any_of_them(schema: Schema) -> None:
    made = matcher(schema)
    assert accepts(made, '{"t": "x"}')
    assert accepts(made, '{"t": "y"}')
    assert not accepts(made, '{"t": "z"}')


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "boolean"}}},
        {"$ref": "#/definitions/a", "definitions": {"a": {"type": "boolean"}}},
        {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"type": "boolean"}}},
        {"$ref": "#flag", "$defs": {"a": {"$anchor": "flag", "type": "boolean"}}},
        {"$ref": "#flag", "definitions": {"a": {"$id": "#flag", "type": "boolean"}}},
        {"$id": "https://example.com/s", "$ref": "https://example.com/s#/$defs/a", "$defs": {"a": {"type": "boolean"}}},
        {"anyOf": [{"type": "boolean"}, {"$ref": "#/anyOf/0"}]},
        {"$ref": "#/$defs/a/items/0", "$defs": {"a": {"items": [{"type": "boolean"}]}}},
    ],
)
def test_a_reference_leads_to_any_place_in_the_schema(schema: Schema) -> None:
    made = matcher(schema)
    assert accepts(made, "true")
    assert not accepts(made, "1")


def test_a_schema_that_allows_everything_is_empty() -> None:
    assert enforced({"$ref": "#/$defs/a", "$defs": {"a": {}}})["$defs"] == {"0": {}}
    with pytest.raises(SchemaError, match="no value is valid"):
        enforced({"not": {}})


def test_a_schema_that_contains_itself_is_enforced_at_every_level() -> None:
    made = matcher({"type": "object", "properties": {"d": {"format": "date", "type": "string"}, "c": {"$ref": "#"}}})
    assert accepts(made, '{"c": {"c": {"d": "2024-02-29"}}}')
    assert not accepts(made, '{"c": {"c": {"d": "2023-02-29"}}}')


def test_the_name_of_a_property_cannot_be_spelled_in_a_second_way_to_escape_its_schema() -> None:
    made = matcher(
        {"properties": {"a": {"type": "null"}}, "type": "object", "additionalProperties": {"type": "string"}}
    )
    assert accepts(made, '{"a": null, "b": "text"}')
    assert not accepts(made, '{"\\u0061": "text"}')


@pytest.mark.slow
@pytest.mark.parametrize(("num_values", "is_compared"), [(10, True), (2000, False)])
def test_values_of_one_of_are_compared_within_a_budget(num_values: int, is_compared: bool) -> None:
    values = range(num_values)
    schema = {"oneOf": [{"enum": [f"{index} {value}" for value in values]} for index in range(30)]}
    if is_compared:
        assert len(enforced(schema)["anyOf"]) == 30
    else:
        with pytest.raises(SchemaError, match="use `anyOf`"):
            enforced(schema)
