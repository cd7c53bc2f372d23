"""The keywords of JSON Schema: those that constrain values, annotations, and those that cannot be enforced."""

import difflib
from typing import Any

from caravan.server.http.errors import shown
from caravan.server.openai.structured_output.schema_error import SchemaError

APPLICATORS = frozenset({"$ref", "anyOf", "oneOf", "allOf", "not"})

ENFORCED = APPLICATORS | {
    *("type", "const", "enum", "format", "pattern", "minLength", "maxLength"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("items", "prefixItems", "additionalItems", "unevaluatedItems", "minItems", "maxItems", "uniqueItems"),
    *("contains", "minContains", "maxContains", "properties", "required", "additionalProperties", "patternProperties"),
    *("propertyNames", "minProperties", "maxProperties", "unevaluatedProperties"),
}

# Accepted only in forms that exclude no value.
_CONDITIONS = ("if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies")
_REFUSED = frozenset({"$dynamicRef", "$recursiveRef", "extends", "disallow", "divisibleBy"})

ANNOTATIONS = frozenset(
    {
        *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"),
        *("$schema", "$id", "id", "$anchor", "$comment", "$defs", "definitions", "$vocabulary", "~standard"),
        *("$dynamicAnchor", "$recursiveAnchor", "contentMediaType", "contentEncoding", "contentSchema"),
        *("discriminator", "xml", "externalDocs", "nullable"),
    }
)

_MAX_UNKNOWN = 200
_MEANINGFUL = sorted(ENFORCED | _REFUSED | set(_CONDITIONS))


def meaningful(schema: dict[str, Any], unknown: set[str]) -> dict[str, Any]:
    """Return the keywords of a schema that constrain values, in their order; adds unknown ones to `unknown`.

    Raises SchemaError for those that cannot be enforced, and for unknown names close to known ones.
    Other unknown keywords are annotations, as in JSON Schema.
    """
    result = {}
    for name, value in schema.items():
        if name in ENFORCED:
            result[name] = value
        elif name in _REFUSED or (name in _CONDITIONS and _is_condition(name, schema)):
            raise SchemaError(f"the keyword `{name}` cannot be enforced")
        elif name not in ANNOTATIONS and name not in _CONDITIONS and name not in unknown:
            unknown.add(name)
            if len(unknown) > _MAX_UNKNOWN:
                raise SchemaError(f"it has more than {_MAX_UNKNOWN} unknown keywords")
            _check_spelling(name)
    return result


def ignored_keywords(schema: Any) -> set[str]:
    """Return the keywords anywhere in a schema that have no effect, except known annotations."""
    found: set[str] = set()
    if isinstance(schema, dict):
        if schema.get("nullable") is True:
            found.add("nullable")
        for name, value in schema.items():
            if name in ("properties", "patternProperties", "$defs", "definitions") and isinstance(value, dict):
                for inner in value.values():
                    found |= ignored_keywords(inner)
            elif name in ENFORCED and name not in ("const", "enum"):
                for inner in value if isinstance(value, list) else [value]:
                    found |= ignored_keywords(inner)
            elif name not in ENFORCED | ANNOTATIONS | set(_CONDITIONS) and not name.startswith("x-"):
                found.add(name)
    return found


def _is_condition(name: str, schema: dict[str, Any]) -> bool:
    """Return whether the keyword may exclude a value."""
    value = schema[name]
    if name == "if":
        return any(schema.get(branch, True) not in (True, {}) for branch in ("then", "else"))
    if name in ("then", "else"):
        return False  # without `if` they are annotations
    return not isinstance(value, dict) or any(item not in ([], True, {}) for item in value.values())


def _check_spelling(name: str) -> None:
    near = difflib.get_close_matches(name, _MEANINGFUL, n=1, cutoff=0.85) if len(name) < 40 else []
    same = [known for known in _MEANINGFUL if known.lower() == name.lower().replace("_", "").replace("-", "")]
    for known in [*same, *near]:
        raise SchemaError(f"the keyword {shown(name)} is unknown. Did you mean `{known}`?")
