"""Objects that name their properties get no others, where that cannot make a schema impossible."""

from typing import Any

import pytest

from caravan.server.openai.structured_output.closed_schema import closed

INNER = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED = INNER | {"additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (INNER, CLOSED),
        ({"type": "array", "items": INNER}, {"type": "array", "items": CLOSED}),
        ({"anyOf": [INNER, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        ({"$defs": {"x": INNER}, "$ref": "#/$defs/x"}, {"$defs": {"x": CLOSED}, "$ref": "#/$defs/x"}),
        (
            {"properties": {"x": INNER, "properties": INNER}, "required": ["x"]},
            {"properties": {"x": CLOSED, "properties": CLOSED}, "required": ["x"], "additionalProperties": False},
        ),
        ({"additionalProperties": INNER}, {"additionalProperties": CLOSED}),
    ],
)
def test_objects_with_named_properties_are_closed(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    assert closed(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        INNER | {"additionalProperties": True},
        INNER | {"required": ["b"]},
        INNER | {"minProperties": 2},
        INNER | {"patternProperties": {"^x": {}}},
        INNER | {"anyOf": [{"required": ["b"]}]},
        {"allOf": [INNER, {"properties": {"b": {}}}]},
        {"properties": {"x": {"allOf": [INNER, INNER]}}},
        {"properties": [1], "items": True},
    ],
)
def test_schemas_that_might_become_impossible_stay_open(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema
