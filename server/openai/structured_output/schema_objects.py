"""The keywords of objects in an enforced schema."""

from collections.abc import Callable
from typing import Any

from caravan.server.http.errors import shown
from caravan.server.openai.structured_output.schema_error import SchemaError
from caravan.server.openai.structured_output.schema_formats import FORMATS
from caravan.server.openai.structured_output.schema_keywords import APPLICATORS, meaningful
from caravan.server.openai.structured_output.schema_numbers import with_limits
from caravan.server.openai.structured_output.schema_pattern import rewritten_patterns
from caravan.server.openai.structured_output.schema_references import References

Schema = dict[str, Any]
_MAX_NAMES = 1000  # that `propertyNames` may list
_MAX_INCLUDED = 64  # schemas that `unevaluatedProperties` looks through


def object_keywords(schema: Schema, rewrite: Callable[[Any], Any], references: References, unknown: set[str]) -> Schema:
    """Return the keywords for objects of a schema, rewritten; raises SchemaError for those that cannot be enforced.

    `rewrite` rewrites a schema inside this one; unknown keywords are added to `unknown`.
    """
    result: Schema = {}
    properties = {name: rewrite(value) for name, value in _schemas(schema, "properties").items()}
    patterns = {_pattern(name): rewrite(value) for name, value in _schemas(schema, "patternProperties").items()}
    others = schema.get("additionalProperties", True)
    if "unevaluatedProperties" in schema and "additionalProperties" not in schema:
        others = schema["unevaluatedProperties"]
        if others not in (True, {}) and any(name in schema for name in APPLICATORS):
            included = _included_names(schema, references)
            if others is not False or included is None:
                raise SchemaError("the keyword `unevaluatedProperties` cannot be enforced with these other schemas")
            properties |= {name: True for name in included if name not in properties}
    others = rewrite(others)
    required = _names(schema.get("required", []))
    if "propertyNames" in schema:
        rule = _resolved(schema["propertyNames"], references, unknown)
        properties, patterns, others = _with_names(rule, properties, patterns, others)
    if properties:
        result["properties"] = properties
    if patterns:
        result["patternProperties"] = patterns
    if required:
        result["required"] = required
    is_open_by_word = others in (True, {}) and bool(schema.keys() & {"additionalProperties", "unevaluatedProperties"})
    if others not in (True, {}) or (properties and is_open_by_word):
        result["additionalProperties"] = others
    result |= with_limits(schema, "minProperties", "maxProperties")
    missing = result.get("minProperties", 0) - len(required)
    if missing <= 0:
        result.pop("minProperties", None)
    elif missing > 1 and (patterns or others is not False):
        # A text may have the same name twice, which counts once.
        raise SchemaError(
            f"`minProperties` may exceed the number of `required` names by at most 1; here it does by {missing}"
        )
    return result


def _with_names(rule: Any, properties: Schema, patterns: Schema, others: Any) -> tuple[Schema, Schema, Any]:
    """Return properties, patternProperties and additionalProperties that also express `propertyNames`."""
    if rule is True or (isinstance(rule, dict) and rule.get("type", "string") == "string" and set(rule) <= {"type"}):
        return properties, patterns, others
    listed = [rule["const"]] if isinstance(rule, dict) and "const" in rule else None
    if isinstance(rule, dict) and set(rule) <= {"type", "const"} and listed is not None:
        pass
    elif isinstance(rule, dict) and set(rule) <= {"type", "enum"} and isinstance(rule.get("enum"), list):
        listed = rule["enum"]
    if listed is not None and not patterns and len(listed) <= _MAX_NAMES:
        names = [name for name in listed if isinstance(name, str)]
        return {name: properties.get(name, others) for name in names}, {}, False
    can_match = isinstance(rule, dict) and set(rule) <= {"type", "pattern"} and "pattern" in rule
    if can_match and not properties and not patterns:
        return {}, {_pattern(rule["pattern"]): others}, False
    raise SchemaError("the keyword `propertyNames` can only list names, or have one pattern if no properties are named")


def _resolved(rule: Any, references: References, unknown: set[str]) -> Any:
    """Return the schema of property names without annotations, its format replaced by a pattern."""
    for _ in range(_MAX_INCLUDED):
        if not isinstance(rule, dict):
            return rule
        rule = meaningful(rule, unknown)
        if set(rule) != {"$ref"}:
            break
        rule = references.target(rule["$ref"])
    if isinstance(rule, dict) and set(rule) <= {"type", "format"} and rule.get("format") in FORMATS:
        return {"pattern": FORMATS[rule["format"]]}
    return rule


def _included_names(schema: Any, references: References, budget: list[int] | None = None) -> set[str] | None:
    """Return the property names that a schema and those it includes evaluate; None if that depends on the value."""
    budget = [_MAX_INCLUDED] if budget is None else budget
    budget[0] -= 1
    if isinstance(schema, bool):
        return set()
    if budget[0] < 0 or not isinstance(schema, dict):
        return None
    names = set(_schemas(schema, "properties"))
    if schema.keys() & {"anyOf", "oneOf", "not", "patternProperties", "additionalProperties"}:
        return None
    included = [references.target(schema["$ref"])] if "$ref" in schema else []
    included += schema["allOf"] if isinstance(schema.get("allOf"), list) else []
    for part in included:
        found = _included_names(part, references, budget)
        if found is None:
            return None
        names |= found
    return names


def _schemas(schema: Schema, keyword: str) -> Schema:
    value = schema.get(keyword, {})
    if not isinstance(value, dict):
        raise SchemaError(f"`{keyword}` is {shown(value)}; it must be an object")
    return value


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise SchemaError(f"`required` is {shown(value)}; it must be a list of names")
    return list(dict.fromkeys(value))


def _pattern(pattern: Any) -> str:
    patterns = rewritten_patterns(pattern, is_of_names=True)
    if len(patterns) > 1:
        raise SchemaError("a pattern of property names has a lookahead, which is not supported")
    return patterns[0]
