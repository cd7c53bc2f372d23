"""Disjoint schemas: whether no value can be valid against two of them, as far as that is easy to see.

`oneOf` of such schemas means the same as `anyOf`: discriminated unions, mostly.
"""

from collections.abc import Iterator
from typing import Any

from caravan.server.openai.structured_output.schema_error import SchemaError
from caravan.server.openai.structured_output.schema_references import References

_TYPES = frozenset({"null", "boolean", "number", "string", "array", "object"})
_MAX_DEPTH = 6
_MAX_PARTS = 64  # of one schema, by allOf and references


def may_overlap(schemas: list[Any], references: References, budget: list[int]) -> bool:
    """Return True unless no JSON value is valid against two of the schemas; each comparison reduces the budget."""
    if _have_different_tags(schemas, references):
        return False
    pairs = ((first, second) for index, first in enumerate(schemas) for second in schemas[:index])
    return not all(_are_disjoint(first, second, references, budget, 0) for first, second in pairs)


def _have_different_tags(schemas: list[Any], references: References) -> bool:
    """Return whether all are objects with a required property whose values are constants, different in each."""
    parts = [list(_parts(schema, references)) for schema in schemas]
    if any(_types(side) != {"object"} for side in parts):
        return False
    required = [{name for part in side for name in _names(part.get("required"))} for side in parts]
    for name in sorted(set.intersection(*required)):
        tags = [_values(list(_parts(_property(side, name), references))) for side in parts]
        known = [values for values in tags if values is not None]
        if len(known) == len(tags) and len(set().union(*known)) == sum(map(len, known)):
            return True
    return False


def _are_disjoint(first: Any, second: Any, references: References, budget: list[int], depth: int) -> bool:
    """Return True if no JSON value is valid against both schemas; False if there may be one."""
    if first is False or second is False:
        return True
    budget[0] -= 1
    if budget[0] < 0 or depth > _MAX_DEPTH or not isinstance(first, dict) or not isinstance(second, dict):
        return False
    parts = (list(_parts(first, references)), list(_parts(second, references)))
    budget[0] -= sum(len(part["enum"]) for side in parts for part in side if isinstance(part.get("enum"), list)) // 16
    for own, other in (parts, parts[::-1]):
        for part in own:
            for keyword in ("anyOf", "oneOf"):
                branches = part.get(keyword)
                if isinstance(branches, list) and all(
                    _are_disjoint(branch, {"allOf": other}, references, budget, depth + 1) for branch in branches
                ):
                    return True
    types = _types(parts[0]) & _types(parts[1])
    if not types:
        return True
    values = (_values(parts[0]), _values(parts[1]))
    if values[0] is not None and values[1] is not None and not values[0] & values[1]:
        return True
    if types == {"object"}:
        names = {name for side in parts for part in side for name in _names(part.get("required"))}
        return any(
            _are_disjoint(_property(parts[0], name), _property(parts[1], name), references, budget, depth + 1)
            for name in sorted(names)
        )
    return False


def _parts(schema: Any, references: References, budget: list[int] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the schema and those that it includes by `allOf` and `$ref`: its values must match all of them."""
    budget = [_MAX_PARTS] if budget is None else budget
    budget[0] -= 1
    if budget[0] < 0:
        return
    if schema is False:
        yield {"enum": []}
    if not isinstance(schema, dict):
        return
    yield schema
    if "$ref" in schema:
        try:
            yield from _parts(references.target(schema["$ref"]), references, budget)
        except SchemaError:
            return
    members = schema.get("allOf")
    for member in members if isinstance(members, list) else ():
        yield from _parts(member, references, budget)


def _types(parts: list[dict[str, Any]]) -> set[str]:
    types = set(_TYPES)
    for part in parts:
        named = part.get("type")
        listed = [named] if isinstance(named, str) else named if isinstance(named, list) else _TYPES
        types &= {"number" if name == "integer" else name for name in listed if isinstance(name, str)}
    values = _values(parts)
    return types if values is None else types & {kind for kind, _ in values}


def _values(parts: list[dict[str, Any]]) -> set[tuple[str, Any]] | None:
    """Return the values that `const` and `enum` allow, or None if no part has them."""
    found: set[tuple[str, Any]] | None = None
    for part in parts:
        for listed in (part.get("enum"), [part["const"]] if "const" in part else None):
            if isinstance(listed, list):
                values = {_comparable(value) for value in listed}
                found = values if found is None else found & values
    return found


def _comparable(value: Any) -> tuple[str, Any]:
    """Return the type and a hashable form of a value; both are equal for values that JSON Schema considers equal."""
    match value:
        case None:
            return "null", None
        case bool():
            return "boolean", value
        case str():
            return "string", value
        case list():
            return "array", tuple(map(_comparable, value))
        case dict():
            return "object", frozenset((key, _comparable(item)) for key, item in value.items())
    return "number", value


def _property(parts: list[dict[str, Any]], name: str) -> Any:
    """Return the schema of a property in values that match all these parts."""
    found = []
    for part in parts:
        properties = part.get("properties")
        if isinstance(properties, dict) and name in properties:
            found.append(properties[name])
        elif part.get("additionalProperties") is False and not part.get("patternProperties"):
            return False
    return {"allOf": found} if found else {}


def _names(listed: Any) -> list[str]:
    return [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
