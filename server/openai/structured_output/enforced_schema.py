"""Enforced schemas: a client's JSON schema, rewritten so that the grammar library enforces it exactly.

llguidance ignores unknown keywords, rounds numbers and has its own pattern syntax, so a schema is rewritten keyword by
keyword. Keywords that exclude nothing are dropped, some are expressed by others, and the rest are refused by name.
Every text that the result allows is valid against the schema, of any draft from 4 to 2020-12.
"""

from typing import Any

from caravan.server.http.errors import shown
from caravan.server.openai.structured_output import schema_numbers as numbers
from caravan.server.openai.structured_output.disjoint_schemas import may_overlap
from caravan.server.openai.structured_output.schema_error import SchemaError
from caravan.server.openai.structured_output.schema_formats import INTEGER_FORMATS, string_patterns
from caravan.server.openai.structured_output.schema_keywords import APPLICATORS, meaningful
from caravan.server.openai.structured_output.schema_numbers import with_limits
from caravan.server.openai.structured_output.schema_objects import object_keywords
from caravan.server.openai.structured_output.schema_pattern import rewritten_patterns
from caravan.server.openai.structured_output.schema_references import References, has_own_name
from caravan.server.openai.structured_output.schema_values import with_values

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_MAX_SCHEMAS = 20_000
_MAX_COMPARISONS = 40_000  # of schemas in `oneOf`
_MAX_DEPTH = 100  # of schemas in schemas, along references

Schema = dict[str, Any]


def enforced(schema: Schema) -> Schema:
    """Return a schema that allows only what `schema` does and is enforced exactly; raises SchemaError.

    An object with the key `x-exact` describes texts that the library's schemas cannot (exact_grammar.py).
    """
    rewriter = _Rewriter(schema)
    result = rewriter.rewrite(schema)
    rewriter.check_multiples()
    if isinstance(result, bool):
        if not result:
            raise SchemaError("no value is valid against it")
        result = {}
    return {**result, "$defs": rewriter.definitions} if rewriter.definitions else result


class _Rewriter:
    """Rewrites one document; a definition is rewritten once, when a reference leads to it."""

    def __init__(self, document: Schema) -> None:
        self.definitions: dict[str, Any] = {}
        self._references = References(document)
        self._document = document
        self._names: dict[int, str] = {}  # of definitions, by the identity of their schema
        self._failed: dict[str, SchemaError] = {}
        self._multiples: set[numbers.Number] = set()
        self._has_joined = False  # a value may have to match several schemas
        self._unknown: set[str] = set()  # keywords
        self._comparisons = [_MAX_COMPARISONS]
        self._num_schemas = 0
        self._depth = 0
        self._num_renamed = 0  # schemas with their own `$id` around the one that is rewritten

    def rewrite(self, schema: Any) -> Any:
        """Return a schema rewritten: an object, or a boolean."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise SchemaError(f"a schema in it is {shown(schema)}; it must be an object or a boolean")
        self._num_schemas += 1
        if self._num_schemas > _MAX_SCHEMAS:
            raise SchemaError(f"it has more than {_MAX_SCHEMAS} schemas")
        if self._depth >= _MAX_DEPTH:
            raise SchemaError(f"its schemas are nested more than {_MAX_DEPTH} levels deep")
        is_renamed = schema is not self._document and has_own_name(schema)
        self._depth += 1
        self._num_renamed += is_renamed
        try:
            return self._rewritten(meaningful(schema, self._unknown))
        finally:
            self._depth -= 1
            self._num_renamed -= is_renamed

    def check_multiples(self) -> None:
        """Raise SchemaError if the library cannot combine the values of `multipleOf` exactly."""
        if self._has_joined and len(self._multiples) > 1 and not numbers.can_meet(self._multiples):
            raise SchemaError("it has several `multipleOf` whose common multiples cannot be enforced exactly")

    def _rewritten(self, schema: Schema) -> Any:
        types = _types(schema)
        keywords = self._keywords(schema, types)
        applied: Schema = {}
        also: list[Any] = keywords.pop("allOf", [])
        for name in schema:
            if name == "not":
                if self._excludes_everything(schema[name]):
                    return False
            elif name == "$ref":
                applied["$ref"] = f"#/$defs/{self._definition(schema[name])}"
            elif name == "allOf":
                also += map(self.rewrite, _branches(schema, name))
            elif name in ("anyOf", "oneOf") and "anyOf" in applied:
                also.append({"anyOf": self._alternatives(schema, name)})
            elif name in ("anyOf", "oneOf"):
                applied["anyOf"] = self._alternatives(schema, name)
        if also:
            applied["allOf"] = also
        self._has_joined |= bool(applied) and (len(applied) > 1 or "allOf" in applied or "multipleOf" in keywords)
        self._has_joined |= bool(applied) and bool(schema.keys() & numbers.BOUNDS)
        # Properties keep the order of the schemas that name them.
        is_first = next((name not in APPLICATORS for name in schema if name != "type"), True)
        result = {**keywords, **applied} if is_first else {**applied, **keywords}
        result = with_values(schema, types, result)
        if isinstance(result, dict) and "multipleOf" in result:
            self._multiples.add(result["multipleOf"])
        return result

    def _keywords(self, schema: Schema, types: list[str] | None) -> Schema:
        """Return a schema's own keywords for values of each type."""
        allowed = types or _TYPES
        result: Schema = {} if types is None else {"type": types[0] if len(types) == 1 else types}
        if "string" in allowed:
            result |= with_limits(schema, "minLength", "maxLength")
            patterns = rewritten_patterns(schema["pattern"]) if "pattern" in schema else []
            patterns += string_patterns(schema)
            if patterns:
                result["pattern"] = patterns[0]
            if patterns[1:]:  # the library takes one pattern in a schema, and several schemas at once
                result["allOf"] = [{"pattern": pattern} for pattern in patterns[1:]]
        if "array" in allowed:
            result |= self._array_keywords(schema)
        if "object" in allowed:
            result |= object_keywords(schema, self.rewrite, self._references, self._unknown)
        if "multipleOf" in schema and ("integer" in allowed or "number" in allowed):
            result["multipleOf"] = numbers.checked_multiple(schema["multipleOf"])
        return result

    def _array_keywords(self, schema: Schema) -> Schema:
        """Return the keywords for arrays; those of earlier drafts become those of 2020-12."""
        result: Schema = {}
        first, items = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(items, list):
            first, items = items, schema.get("additionalItems", True)
        if "items" not in schema and schema.get("unevaluatedItems", True) not in (True, {}):
            if any(name in schema for name in APPLICATORS):
                raise SchemaError("the keyword `unevaluatedItems` cannot be enforced with other schemas")
            items = schema["unevaluatedItems"]
        if not isinstance(first, list):
            raise SchemaError(f"`prefixItems` is {shown(first)}; it must be a list of schemas")
        if first:
            result["prefixItems"] = [self.rewrite(item) for item in first]
        items = self.rewrite(items)
        if items not in (True, {}):
            result["items"] = items
        result |= with_limits(schema, "minItems", "maxItems")
        if schema.get("uniqueItems") and result.get("maxItems", 2) > 1:
            raise SchemaError("the keyword `uniqueItems` cannot be enforced")
        least = numbers.count(schema.get("minContains", 1), "minContains")
        if "contains" in schema and (least or "maxContains" in schema):
            raise SchemaError("the keyword `contains` cannot be enforced")
        return result

    def _alternatives(self, schema: Schema, keyword: str) -> list[Any]:
        """Return the schemas of `anyOf`, or of a `oneOf` that means the same, without those that cannot be enforced."""
        branches = _branches(schema, keyword)
        if keyword == "oneOf" and may_overlap(branches, self._references, self._comparisons):
            raise SchemaError("two schemas of its `oneOf` may accept the same value; use `anyOf`")
        rewritten, problem = [], None
        for branch in branches:
            try:
                rewritten.append(self.rewrite(branch))
            except SchemaError as error:
                if self._num_schemas > _MAX_SCHEMAS:
                    raise
                problem = error
        if problem is not None and all(branch is False for branch in rewritten):
            raise problem
        return rewritten

    def _excludes_everything(self, negated: Any) -> bool:
        """Return True if `not` excludes all values, False if it excludes none; raises SchemaError otherwise."""
        if negated is False:
            return False
        if negated is True or (isinstance(negated, dict) and not meaningful(negated, self._unknown)):
            return True
        raise SchemaError("the keyword `not` cannot be enforced")

    def _definition(self, reference: Any) -> str:
        """Return the name of the definition that a reference leads to; its rewriting may not have ended."""
        if self._num_renamed and isinstance(reference, str) and reference.startswith("#"):
            raise SchemaError("it has a `$ref` inside a schema with its own `$id`")
        target = self._references.target(reference)
        if isinstance(target, bool):
            target = {} if target else {"enum": []}
        if not isinstance(target, dict):
            raise SchemaError(f"`$ref` is {shown(reference)}, which is not a schema")
        name = self._names.get(id(target))
        if name is None:
            name = self._names[id(target)] = str(len(self._names))
            self.definitions[name] = target
            try:
                self.definitions[name] = self.rewrite(target)
            except SchemaError as error:
                self._failed[name] = error
                self.definitions[name] = False
        if name in self._failed:
            raise self._failed[name]
        return name


def _types(schema: Schema) -> list[str] | None:
    """Return the types that a schema names, None if it allows all of them; raises SchemaError."""
    if "type" not in schema:
        return None
    named = schema["type"]
    types = [named] if isinstance(named, str) else named
    if not isinstance(types, list) or not types:
        raise SchemaError(f"`type` is {shown(named)}; it must be a type or a list of types")
    for name in types:
        if name not in _TYPES:
            raise SchemaError(f"Invalid type {shown(name)}; it must be one of {', '.join(_TYPES)}")
    if schema.get("format") in INTEGER_FORMATS:
        types = ["integer" if name == "number" else name for name in types]
    types = list(dict.fromkeys(types))
    return [name for name in types if name != "integer"] if "number" in types else types


def _branches(schema: Schema, keyword: str) -> list[Any]:
    value = schema[keyword]
    if not isinstance(value, list) or not value:
        raise SchemaError(f"`{keyword}` is {shown(value)}; it must be a list of schemas")
    return value
