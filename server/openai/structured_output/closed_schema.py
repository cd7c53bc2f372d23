"""Closed schemas: objects that name their properties get no others.

A schema without `additionalProperties` allows any others, and small models then generate them without end. Every text
of the closed schema is valid against the original one.
"""

from typing import Any

# Beside these an object's properties may be named elsewhere.
_OPEN = {"additionalProperties", "patternProperties", "anyOf", "allOf", "$ref"}
_OBJECT = {"properties", "required", "minProperties", "maxProperties", "additionalProperties", "patternProperties"}


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return an enforced schema with its objects closed, except where a value must match several of them."""
    return schema if _has_joined_objects(schema) else _closed(schema)


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    for name in ("properties", "$defs", "patternProperties"):  # objects of schemas
        if isinstance(schema.get(name), dict):
            result[name] = {key: _closed(value) for key, value in schema[name].items()}
    for name in ("anyOf", "prefixItems"):
        if isinstance(schema.get(name), list):
            result[name] = [_closed(value) for value in schema[name]]
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            result[name] = _closed(schema[name])
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list) or _OPEN & set(schema):
        return result
    if schema.get("minProperties", 0) <= 1 and all(isinstance(name, str) and name in properties for name in required):
        result["additionalProperties"] = False
    return result


def _has_joined_objects(schema: Any) -> bool:
    """Return whether a value may have to match several object schemas that each name properties."""
    if isinstance(schema, list):
        return any(map(_has_joined_objects, schema))
    if not isinstance(schema, dict):
        return False
    members, branches = schema.get("allOf"), schema.get("anyOf")
    if isinstance(members, list) and any(not isinstance(part, dict) or set(part) != {"pattern"} for part in members):
        return True
    num_others = isinstance(branches, list) + isinstance(schema.get("$ref"), str)
    if num_others + bool(_OBJECT & set(schema)) > 1:
        return True
    return any(_has_joined_objects(value) for key, value in schema.items() if key not in ("const", "enum"))
