"""The keywords of schemas that count characters, items and properties."""

from typing import Any

from caravan.server.openai.structured_output.schema_numbers import count

_UNREACHABLE = 2**31  # no answer has so many characters, items or properties


def with_limits(schema: dict[str, Any], least: str, most: str) -> dict[str, Any]:
    """Return those of two keywords that exclude something; raises SchemaError if they are no counts."""
    result = {}
    if count(schema.get(least, 0), least):
        result[least] = count(schema[least], least)
    if most in schema and count(schema[most], most) < _UNREACHABLE:
        result[most] = count(schema[most], most)
    return result
