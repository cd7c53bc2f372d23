"""Schemas and values for tests of structured output, and what the grammar of a schema accepts."""

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from caravan.server.openai.structured_output.schema_grammar import grammar_of_schema
from caravan.server.sandbox.grammar_worker import Bytes

Schema = dict[str, Any]

NAMES = ["a", "b", "c"]
PATTERNS = [
    *("^a", "b$", "^(ab|c)+$", "[^a]", r"^\d+$", r"\W", r"^\S*$", r"\s", ".", "^.$", "a{2,3}", "^a|b$", r"^[\w-]+$"),
    *(r"^[a-c\d]$", r"\x61\u0062", "^(?=.*a)(?=.*b).*$", "(a|)b?", r"[[\]&]", r"^\/\-$", "^a+?b*?$", "^$", r"[^\s\d]"),
]
TEXTS = [
    *(
        "",
        "a",
        "b",
        "ab",
        "abc",
        "aab",
        "aaab",
        "c",
        "cab",
        "1",
        "12",
        "a1",
        " ",
        "\n",
        "\t",
        "é",
        "ü1",
        "-",
        "a-b",
        "[",
        "]",
    ),
    *("&", "/-", "\\", '"', 'a"b', "٣", "\x1c", "\x85", "\u2028", "\ufeff", "😀", "ab\n", "_", "ba", "0", "x", "true"),
]
NUMBERS = [
    *(
        0,
        1,
        -1,
        2,
        3,
        5,
        7,
        10,
        12,
        99,
        100,
        -10,
        0.5,
        1.5,
        2.5,
        -0.5,
        0.1,
        0.3,
        1e-7,
        4.999999999999999,
        2**53,
        2**53 + 1,
    ),
    *(2**53 + 2, -(2**53) - 1, 2**60, 2**60 + 1, 10**18 - 1, 10**18, 10**18 + 1, 1234567890123456789, 2**63 - 1, 2**63),
    *(-(2**63), 2**64, 1e300, 1e22, 0.25, 6, -7, 1000000),
]


def matcher(schema: Schema) -> LLMatcher:
    """Return the matcher of a schema over tokens that are bytes; raises ValueError if the schema is refused."""
    made = LLMatcher(LLTokenizer(TokenizerWrapper(Bytes()), slices=[]), grammar_of_schema(schema), log_level=0)
    if made.is_error():
        raise ValueError(made.get_error())
    return made


def accepts(start: LLMatcher, text: str) -> bool:
    """Return whether a text is one of the grammar, from its beginning to its end."""
    state, tokens = start.deep_copy(), list(text.encode())
    return state.validate_tokens(tokens) == len(tokens) and state.consume_tokens(tokens) and state.is_accepting()


def written(value: Any) -> str:
    """Return a value as JSON in the spacing of answers."""
    return json.dumps(value, ensure_ascii=False)


def sampled_texts(start: LLMatcher, rng: random.Random, count: int, length: int = 120) -> Iterator[str]:
    """Yield texts drawn from the grammar; those that do not end within `length` bytes are left out."""
    for _ in range(count):
        state, text = start.deep_copy(), b""
        while len(text) < length and not state.is_stopped():
            mask = np.frombuffer(state.compute_bitmask(), np.uint8)
            allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")[:257]).tolist()
            # An end is taken wherever there is one, most of the time: texts stay short.
            ending = [index for index in allowed if index == 256 or chr(index) in '"]}']
            token = rng.choice(ending if ending and rng.random() < 0.4 else allowed)
            if token == 256:
                break
            state.consume_token(token)
            text += bytes([token])
        else:
            if not state.is_stopped():
                continue
        yield text.decode()


def values(rng: random.Random, depth: int = 2) -> Any:
    """Return a JSON value, often one that a schema of `schemas` is about."""
    kind = rng.randrange(8 if depth else 6)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind in (1, 2):
        return rng.choice(NUMBERS) if rng.random() < 0.7 else rng.randint(-20, 20)
    if kind in (3, 4, 5):
        return rng.choice(TEXTS)
    if kind == 6:
        return [values(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return {name: values(rng, depth - 1) for name in NAMES if rng.random() < 0.6}


def schemas(rng: random.Random, depth: int = 3) -> Any:
    """Return a schema of any keywords, those that are refused included."""
    if rng.random() < 0.04:
        return rng.choice([True, False, {}])
    result: Schema = {}
    if rng.random() < 0.8:
        kinds = ["null", "boolean", "integer", "number", "string", "array", "object"]
        result["type"] = rng.choice(kinds) if rng.random() < 0.8 else rng.sample(kinds, rng.randint(1, 3))
    kinds = result.get("type", ["integer", "number", "string", "array", "object"])
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        result |= _KEYWORDS.get(kind, lambda *_: {})(rng, depth)
    if rng.random() < 0.12:
        result["enum"] = [values(rng, 1) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.08:
        result["const"] = values(rng, 1)
    if depth:
        for name in ("anyOf", "oneOf", "allOf"):
            if rng.random() < 0.1:
                result[name] = [schemas(rng, depth - 1) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.03:
            result["not"] = schemas(rng, depth - 1)
    items = list(result.items())
    if rng.random() < 0.3:
        rng.shuffle(items)
    return dict(items)


def documents(rng: random.Random) -> Schema:
    """Return a schema with definitions and references to them."""
    part, whole = schemas(rng, 1), schemas(rng, 2)
    if isinstance(whole, bool) or rng.random() < 0.6:
        return whole if isinstance(whole, dict) else {}
    place = rng.choice(["$defs", "definitions"])
    reference = {"$ref": f"#/{place}/part"}
    match rng.randrange(4):
        case 0:
            return {"$defs": {}, place: {"part": part}, "type": "array", "items": reference, "maxItems": 2}
        case 1:
            return {place: {"part": part}, **whole, **reference}
        case 2:
            return {place: {"part": part}, "anyOf": [reference, {"type": "null"}]}
    return {place: {"part": part}, "type": "object", "properties": {"a": reference, "b": whole}, "required": ["a"]}


def _numbers(rng: random.Random, depth: int) -> Schema:
    names = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    result: Schema = {name: rng.choice(NUMBERS) for name in names if rng.random() < 0.25}
    if rng.random() < 0.12:
        result["multipleOf"] = rng.choice([1, 2, 3, 0.5, 0.1, 2.5, 7, 0.01])
    if rng.random() < 0.05:
        result["format"] = rng.choice(["int32", "int64", "uint8", "double"])
    return result


def _strings(rng: random.Random, depth: int) -> Schema:
    result: Schema = {}
    if rng.random() < 0.3:
        result["minLength"] = rng.randint(0, 2)
    if rng.random() < 0.3:
        result["maxLength"] = rng.randint(0, 4)
    if rng.random() < 0.3:
        result["pattern"] = rng.choice(PATTERNS)
    return result


def _arrays(rng: random.Random, depth: int) -> Schema:
    result: Schema = {}
    inner = max(depth - 1, 0)
    if rng.random() < 0.6:
        result["items"] = schemas(rng, inner) if rng.random() < 0.8 else [schemas(rng, inner)]
    if rng.random() < 0.3:
        result["prefixItems"] = [schemas(rng, inner) for _ in range(rng.randint(0, 2))]
    for name, chance in (("minItems", 0.3), ("maxItems", 0.3)):
        if rng.random() < chance:
            result[name] = rng.randint(0, 3)
    if rng.random() < 0.06:
        result["additionalItems"] = rng.choice([False, schemas(rng, inner)])
    if rng.random() < 0.05:
        result["uniqueItems"] = rng.choice([True, False])
    if rng.random() < 0.04:
        result |= {"contains": schemas(rng, inner), "minContains": rng.randint(0, 1)}
    if rng.random() < 0.04:
        result["unevaluatedItems"] = rng.choice([True, False])
    return result


def _objects(rng: random.Random, depth: int) -> Schema:
    result: Schema = {}
    inner = max(depth - 1, 0)
    if rng.random() < 0.75:
        result["properties"] = {name: schemas(rng, inner) for name in NAMES if rng.random() < 0.6}
    if rng.random() < 0.5:
        result["required"] = rng.sample(NAMES, rng.randint(0, 2))
    if rng.random() < 0.5:
        result["additionalProperties"] = rng.choice([False, False, True, schemas(rng, inner)])
    if rng.random() < 0.12:
        result["patternProperties"] = {rng.choice(["^a", "b$", "^[bc]$", "c"]): schemas(rng, inner)}
    if rng.random() < 0.12:
        result["minProperties"] = rng.randint(0, 2)
    if rng.random() < 0.1:
        result["maxProperties"] = rng.randint(0, 3)
    if rng.random() < 0.08:
        result["propertyNames"] = rng.choice(
            [{"type": "string"}, True, {}, {"enum": ["a", "b"]}, {"pattern": "^[ab]"}, {"maxLength": 1}, {"const": "a"}]
        )
    if rng.random() < 0.05:
        result["unevaluatedProperties"] = rng.choice([True, False])
    if rng.random() < 0.04:
        result["dependentRequired"] = rng.choice([{}, {"a": []}, {"a": ["b"]}])
    return result


_KEYWORDS = {"integer": _numbers, "number": _numbers, "string": _strings, "array": _arrays, "object": _objects}
