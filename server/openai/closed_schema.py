"""Closed schemas: objects that name their properties get no others.

A schema that says nothing of further properties allows any, and a small model then goes on inventing them. Texts of
the closed schema are texts of the schema, so an answer still keeps to what was asked for.
"""

from typing import Any

# Beside these an object's properties may be named elsewhere, or must be more than are named.
_OPEN = {"additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames", "minProperties"}
_OPEN |= {"anyOf", "oneOf", "allOf", "not", "if", "$ref", "dependentSchemas", "dependentRequired"}
_NAMED = ("properties", "$defs", "definitions")  # objects of schemas
_LISTED = ("anyOf", "oneOf", "prefixItems")


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with its objects closed; as it is where a text has to be of several of its parts at once."""
    return schema if _has_any(schema, {"allOf", "not", "if", "oneOf"}) else _closed(schema)


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    for name in _NAMED:
        if isinstance(schema.get(name), dict):
            result[name] = {key: _closed(value) for key, value in schema[name].items()}
    for name in _LISTED:
        if isinstance(schema.get(name), list):
            result[name] = [_closed(value) for value in schema[name]]
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            result[name] = _closed(schema[name])
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list) or _OPEN & set(schema):
        return result
    if all(isinstance(name, str) and name in properties for name in required):
        result["additionalProperties"] = False
    return result


def _has_any(value: Any, names: set[str]) -> bool:
    """Return whether one of the names is a key anywhere in a JSON value."""
    if isinstance(value, dict):
        return bool(names & set(value)) or any(_has_any(item, names) for item in value.values())
    return isinstance(value, list) and any(_has_any(item, names) for item in value)
