"""Bounds of numbers, `const` and `enum` in an enforced schema."""

import re
from typing import Any

from caravan.server.http.errors import shown
from caravan.server.openai.structured_output import schema_numbers as numbers
from caravan.server.openai.structured_output.schema_error import SchemaError
from caravan.server.openai.structured_output.schema_formats import INTEGER_FORMATS
from caravan.server.openai.structured_output.schema_pattern import literal_pattern

Schema = dict[str, Any]
_CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
_NOT_OF_INTEGERS = {
    *("type", "minLength", "maxLength", "pattern", "items", "prefixItems", "minItems", "maxItems", "properties"),
    *("required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"),
}


def with_values(schema: Schema, types: list[str] | None, result: Schema) -> Any:
    """Return `result` with the bounds and the values that `schema` allows for these types.

    If the library cannot represent a number exactly, the result describes texts instead of values (`x-exact`), or
    SchemaError is raised.
    """
    if "const" in schema or "enum" in schema:
        return _with_listed(schema, types, result)
    if types is None or "number" in types:
        return result | numbers.number_bounds(schema)
    if "integer" not in types:
        return result
    least, most = _integer_bounds(schema)
    others = _without_integers(types, result)
    if least is not None and most is not None and least > most:
        return others
    if numbers.are_kept(least, most):
        bounds = {"minimum": least, "maximum": most}
        return result | {name: bound for name, bound in bounds.items() if bound is not None}
    wanted = next(bound for bound in (least, most) if not numbers.are_kept(bound))
    if result.keys() - _NOT_OF_INTEGERS:
        raise SchemaError(f"{shown(wanted)} cannot be enforced exactly as a bound together with other keywords")
    exact = {"x-exact": f"(?:{numbers.integer_range(least, most)})", "x-number": wanted}
    return exact if others is False else {"anyOf": [exact, others]}


def _integer_bounds(schema: Schema) -> tuple[int | None, int | None]:
    least, most = numbers.integer_bounds(schema)
    if schema.get("format") in INTEGER_FORMATS:
        low, high = INTEGER_FORMATS[schema["format"]]
        least, most = max(low, low if least is None else least), min(high, high if most is None else most)
    return numbers.reachable(least, most)


def _without_integers(types: list[str], result: Schema) -> Any:
    others = [name for name in types if name != "integer"]
    return {**result, "type": others} if others else False


def _with_listed(schema: Schema, types: list[str] | None, result: Schema) -> Any:
    """Add `const` and `enum`, without the values that the bounds of numbers exclude."""
    listed = schema["enum"] if "enum" in schema else [schema["const"]]
    if not isinstance(listed, list):
        raise SchemaError(f"`enum` is {shown(listed)}; it must be a list of values")
    if "enum" in schema and "const" in schema:
        listed = [value for value in listed if _are_equal(value, schema["const"])]
    values = [numbers.canonical(value) for value in listed if _is_of_type(value, types)]
    bounds = numbers.checked_bounds(schema)
    values = [value for value in values if numbers.is_within(value, bounds)]
    if not values:
        return False
    values = [value for value in values if not _has_control_characters(value)]
    if not values:
        raise SchemaError("its only values have control characters, which cannot be written")
    kept = [value for value in values if numbers.is_kept(value)]
    if len(kept) == len(values):
        return {**result, "enum": values}
    wanted = next(value for value in values if not numbers.is_kept(value))
    if result.keys() - {"type"}:
        raise SchemaError(f"{shown(wanted)} cannot be enforced exactly together with keywords other than `type`")
    texts = [literal_pattern(numbers.literal(value)) for value in values if not numbers.is_kept(value)]
    exact = {"x-exact": f"(?:{'|'.join(texts)})", "x-number": wanted}
    return {"anyOf": [exact, {"enum": kept}]} if kept else exact


def _is_of_type(value: Any, types: list[str] | None) -> bool:
    match value:
        case None:
            kinds = {"null"}
        case bool():
            kinds = {"boolean"}
        case int():
            kinds = {"integer", "number"}
        case float():
            kinds = {"integer", "number"} if value.is_integer() else {"number"}
        case str():
            kinds = {"string"}
        case list():
            kinds = {"array"}
        case _:
            kinds = {"object"}
    return types is None or not kinds.isdisjoint(types)


def _are_equal(first: Any, second: Any) -> bool:
    """Return whether JSON Schema calls two values equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_are_equal, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_are_equal(first[key], second[key]) for key in first)
    return bool(first == second)


def _has_control_characters(value: Any) -> bool:
    """Return whether a text in a value can be written only with `\\u` and digits."""
    if isinstance(value, str):
        return _CONTROL.search(value) is not None
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_has_control_characters, inner))
