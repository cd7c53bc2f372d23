"""Grammars of schemas with numbers that the library's own schemas cannot represent exactly.

The objects, arrays and alternatives around such a number are written as rules of Lark; everything else in them stays
a schema (`%json`). The spacing is that of Python's json.dumps.
"""

import json
from typing import Any

from caravan.server.http.errors import shown
from caravan.server.openai.structured_output.schema_error import SchemaError

JSON_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # Without \\uXXXX, by which a named property could be written a second time as another one.
    "json_allowed_escapes": 'nrbtf\\\\"',
}

Schema = dict[str, Any]
_MAX_REPEATS = 1000
_MAX_COPIED = 2**20  # characters of definitions, in all schemas that refer to them
_OBJECT = {"type", "properties", "required", "additionalProperties"}
_ARRAY = {"type", "items", "prefixItems", "minItems", "maxItems"}


def needs_rules(schema: Schema) -> bool:
    """Return whether an enforced schema has numbers that only rules represent exactly."""
    return _reaches({**schema, "$defs": []}, _exact_definitions(schema.get("$defs", {})))


def json_rules(name: str, schema: Schema) -> list[str]:
    """Return rules of Lark for the JSON texts of an enforced schema; the first has this name.

    Raises SchemaError if a number is in a place where rules cannot represent it.
    """
    exact = _exact_definitions(schema.get("$defs", {}))
    top = {key: value for key, value in schema.items() if key != "$defs"}
    if not _reaches(top, exact):
        return [f"{name}: {_inline(schema)}"]
    writer = _Writer(name, top, schema.get("$defs", {}), exact)
    writer.rules.append(f"{name}: {writer.write(top)}")
    return writer.rules[::-1]


def _inline(schema: Schema) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS})}"


class _Writer:
    """Writes the rules of one schema."""

    def __init__(self, name: str, top: Schema, definitions: dict[str, Any], exact: set[str]) -> None:
        self.rules: list[str] = []
        self._top = top
        self._name = name
        self._definitions = definitions
        self._exact = exact
        self._others = {key: value for key, value in definitions.items() if key not in exact}
        self._leading_to = {key: _references(value) for key, value in self._others.items()}
        self._num_copied = 0  # characters of definitions; each schema has its own
        self._written: dict[str, str] = {}  # rules of definitions
        self._num_rules = 0

    def write(self, schema: Any) -> str:
        """Return an expression for a schema, after adding the rules that it needs."""
        if not _reaches(schema, self._exact):
            return self._rule(_inline(self._with_definitions({} if schema is True else schema)))
        if isinstance(schema.get("x-exact"), str):
            return self._rule(f"/{schema['x-exact']}/")
        if set(schema) == {"$ref"}:
            return self._definition(schema["$ref"].removeprefix("#/$defs/"))
        if set(schema) == {"anyOf"}:
            return self._rule(" | ".join(self.write(branch) for branch in schema["anyOf"] if branch is not False))
        if schema.get("type") == "object" and set(schema) <= _OBJECT:
            return self._object(schema)
        if schema.get("type") == "array" and set(schema) <= _ARRAY:
            return self._array(schema)
        raise SchemaError(
            f"{_named(schema)} cannot be enforced exactly here; such a number can be in objects, arrays and "
            "`anyOf` that have a `type` and no other keywords"
        )

    def _with_definitions(self, schema: Schema) -> Schema:
        """Return a schema that needs no rules, together with the definitions that it refers to."""
        needed = _references(schema)
        found: set[str] = set()
        while names := needed - found:
            found |= names
            needed = set().union(*(self._leading_to[name] for name in names))
        if not found:
            return schema
        definitions = {name: self._others[name] for name in sorted(found)}
        self._num_copied += len(json.dumps(definitions))
        if self._num_copied > _MAX_COPIED:
            raise SchemaError(
                f"{_named(self._top)} cannot be enforced exactly with this many references to definitions; use fewer "
                "or smaller ones"
            )
        return {**schema, "$defs": definitions}

    def _rule(self, body: str) -> str:
        self._num_rules += 1
        name = f"{self._name}_{self._num_rules}"
        self.rules.append(f"{name}: {body}")
        return name

    def _definition(self, name: str) -> str:
        if name not in self._written:
            self._num_rules += 1
            rule = self._written[name] = f"{self._name}_{self._num_rules}"
            self.rules.append(f"{rule}: {self.write(self._definitions[name])}")
        return self._written[name]

    def _object(self, schema: Schema) -> str:
        properties: Schema = dict(schema.get("properties", {}))
        required = schema.get("required", [])
        others = schema.get("additionalProperties", True)
        if others is not False:
            raise SchemaError(
                f"{_named(schema)} can be enforced exactly only in an object with `additionalProperties: false`"
            )
        if not set(required) <= {name for name in properties if properties[name] is not False}:
            raise SchemaError("no value is valid against it: a required property is not allowed")
        pairs = [
            (f"{json.dumps(json.dumps(name, ensure_ascii=False) + ': ')} {self.write(value)}", name in required)
            for name, value in properties.items()
            if value is not False
        ]
        first, rest = '""', '""'  # what may follow, without and with a pair before
        for pair, is_required in reversed(pairs):
            if is_required:
                first, rest = self._rule(f"{pair} {rest}"), self._rule(f'", " {pair} {rest}')
            else:
                first = self._rule(f"{pair} {rest} | {first}")
                rest = self._rule(f'(", " {pair})? {rest}')
        return self._rule(f'"{{" {first} "}}"')

    def _array(self, schema: Schema) -> str:
        first = schema.get("prefixItems", [])
        items, least, most = schema.get("items", True), schema.get("minItems", 0), schema.get("maxItems")
        if most is not None and least > most:
            raise SchemaError("no value is valid against it: `minItems` is above `maxItems`")
        if least > _MAX_REPEATS:
            raise SchemaError(
                f"`minItems` is above {_MAX_REPEATS} in an array with a number that needs an exact grammar"
            )
        places = [self.write(item) if item is not False else None for item in first[:most]]
        if None in places:
            places, items, most = places[: places.index(None)], False, None
        after = '""'
        num_more = None if most is None else most - len(places)
        num_needed = max(least - len(places), 0)
        if items is not False and num_more != 0:
            bounds = f"{{{num_needed},{'' if num_more is None else num_more}}}"
            after = self._rule(f'(", " {self.write(items)}){bounds}')
            if not places:
                head = self._rule(self.write(items))
                bounds = f"{{{max(num_needed - 1, 0)},{'' if num_more is None else num_more - 1}}}"
                some = f'{head} (", " {head}){bounds}'
                return self._rule(f'"[" {some} "]"' if num_needed else f'"[" ({some})? "]"')
        elif num_needed:
            raise SchemaError("no value is valid against it: `minItems` is above the number of items")
        for index in range(len(places) - 1, -1, -1):
            comma = '", " ' if index else ""
            inner = f"{comma}{places[index]} {after}"
            after = self._rule(inner if index < least else f"({inner})?")
        return self._rule(f'"[" {after} "]"')


def _exact_definitions(definitions: dict[str, Any]) -> set[str]:
    """Return the names of the definitions that lead to a number which needs rules."""
    leading: dict[str, list[str]] = {name: [] for name in definitions}  # to each, from others
    exact = []
    for name, schema in definitions.items():
        references: set[str] = set()
        if _scan(schema, references):
            exact.append(name)
        for reference in references:
            leading[reference].append(name)
    found = set(exact)
    while exact:
        exact = [name for reached in exact for name in leading[reached] if name not in found]
        found |= set(exact)
    return found


def _reaches(schema: Any, exact: set[str]) -> bool:
    references: set[str] = set()
    return _scan(schema, references) or not references.isdisjoint(exact)


def _references(schema: Any) -> set[str]:
    """Return the names of the definitions that a schema refers to directly."""
    references: set[str] = set()
    _scan(schema, references)
    return references


def _scan(schema: Any, references: set[str]) -> bool:
    """Return whether a number in the schema itself needs rules; adds the definitions that it refers to."""
    if isinstance(schema, list):
        found = [_scan(item, references) for item in schema]  # all of them, for their references
        return any(found)
    if not isinstance(schema, dict):
        return False
    if isinstance(schema.get("$ref"), str):  # else a property of that name
        references.add(schema["$ref"].removeprefix("#/$defs/"))
    inner = [_scan(value, references) for key, value in schema.items() if key not in ("enum", "const")]
    return isinstance(schema.get("x-exact"), str) or any(inner)


def _number(schema: Any) -> Any:
    """Return a number in the schema that needs rules; None if it is in a definition."""
    if isinstance(schema, dict) and isinstance(schema.get("x-exact"), str):
        return schema["x-number"]
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    return next((number for number in map(_number, inner) if number is not None), None)


def _named(schema: Any) -> str:
    number = _number(schema)
    return "a number in a definition" if number is None else shown(number)
