"""JSON schemas of many kinds, for tests of constrained text: random ones, the same for the same seed."""

import random
from typing import Any

Schema = dict[str, Any]

PATTERNS = ["^[a-z]{2,5}$", "^[A-Z][0-9]{3}$", "^(yes|no)$", "^[0-9]{3}-[0-9]{4}$"]
FORMATS = ["date", "uuid", "ipv4", "time"]


def random_schemas(count: int) -> list[Schema]:
    """Return `count` different schemas; the texts they allow are a few hundred characters long at most."""
    schemas: list[Schema] = []
    seed = 0
    while len(schemas) < count:
        schema = _object(random.Random(seed), 2) if seed % 3 else _any(random.Random(seed), 2)
        if seed % 5 == 0:
            schema = {"$defs": {"part": schema}, "type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2}
        if schema not in schemas:
            schemas.append(schema)
        seed += 1
    return schemas


def _any(rng: random.Random, depth: int) -> Schema:
    kinds = [_string, _pattern, _format, _enum, _const, _integer, _number, _boolean, _nullable]
    if depth:
        kinds += [_array, _tuple, _object, _any_of, _all_of] * 2
    return rng.choice(kinds)(rng, depth)


def _string(rng: random.Random, depth: int) -> Schema:
    shortest = rng.randint(0, 3)
    return {"type": "string", "minLength": shortest, "maxLength": shortest + rng.randint(0, 6)}


def _pattern(rng: random.Random, depth: int) -> Schema:
    return {"type": "string", "pattern": rng.choice(PATTERNS)}


def _format(rng: random.Random, depth: int) -> Schema:
    return {"type": "string", "format": rng.choice(FORMATS)}


def _enum(rng: random.Random, depth: int) -> Schema:
    return {"enum": rng.sample(["red", "green", "blué", 1, 2.5, None, True, 'a "quoted" one'], rng.randint(1, 5))}


def _const(rng: random.Random, depth: int) -> Schema:
    return {"const": rng.choice(["fixed", 7, None, ["a", 1], {"k": "v"}])}


def _integer(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(-500, 500)
    return {"type": "integer", "minimum": least, "maximum": least + rng.randint(0, 1000)}


def _number(rng: random.Random, depth: int) -> Schema:
    return {"type": "number", "exclusiveMinimum": rng.randint(-10, 0), "maximum": rng.randint(1, 10)}


def _boolean(rng: random.Random, depth: int) -> Schema:
    return {"type": "boolean"}


def _nullable(rng: random.Random, depth: int) -> Schema:
    return {"type": ["integer", "null"], "minimum": 0, "maximum": rng.randint(1, 99)}


def _array(rng: random.Random, depth: int) -> Schema:
    fewest = rng.randint(0, 2)
    return {"type": "array", "items": _any(rng, depth - 1), "minItems": fewest, "maxItems": fewest + rng.randint(0, 2)}


def _tuple(rng: random.Random, depth: int) -> Schema:
    items = [_any(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(["name", "age", "tags", "is ok", "größe", "x"], rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _any(rng, max(0, depth - 1)) for name in names},
        "required": sorted(rng.sample(names, rng.randint(0, len(names)))),
        "additionalProperties": False,
    }


def _any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(rng, depth - 1) for _ in range(rng.randint(2, 3))]}


def _all_of(rng: random.Random, depth: int) -> Schema:
    return {"allOf": [_integer(rng, 0), {"minimum": -2000}], "description": "an integer"}
