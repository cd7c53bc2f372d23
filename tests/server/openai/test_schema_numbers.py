"""Numbers of schemas: kept exactly, or refused by name."""

import random
import re
from typing import Any

import pytest

from caravan.server.openai.structured_output.schema_error import SchemaError
from caravan.server.openai.structured_output.schema_grammar import grammar_of_schema
from caravan.server.openai.structured_output.schema_numbers import integer_range
from tests.server.openai.api import CHAT, COMPLETIONS, Api, a_chat
from tests.support.schema_samples import Schema, accepts, matcher

ID = 1234567890123456789  # a float64 holds ...768
CLOSED = {"type": "object", "required": ["id"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"const": ID}, f"{ID}", f"{ID - 21}"),
        ({"enum": [ID, ID + 1, 7]}, f"{ID + 1}", f"{ID + 2}"),
        ({"type": "integer", "enum": [7, ID, "a"]}, "7", '"a"'),
        ({"const": {"i": [ID], "n": "a b"}}, f'{{"i": [{ID}], "n": "a b"}}', f'{{"i": [{ID + 1}], "n": "a b"}}'),
        (CLOSED | {"properties": {"id": {"const": ID}}}, f'{{"id": {ID}}}', f'{{"id": {ID - 21}}}'),
        (
            CLOSED | {"properties": {"a": {"type": "null"}, "id": {"const": ID}}},
            f'{{"a": null, "id": {ID}}}',
            '{"a": null}',
        ),
        ({"type": "object", "properties": {"id": {"const": ID}, "a": {"type": "null"}}}, '{"a": null}', '{"b": 1}'),
        ({"type": "array", "items": {"const": ID}, "maxItems": 2}, f"[{ID}, {ID}]", f"[{ID}, {ID}, {ID}]"),
        ({"type": "array", "prefixItems": [{"const": ID}], "minItems": 1}, f'[{ID}, "x"]', "[]"),
        (
            {
                "$defs": {"n": {"anyOf": [{"const": ID}, {"type": "array", "items": {"$ref": "#/$defs/n"}}]}},
                "$ref": "#/$defs/n",
            },
            f"[[{ID}], {ID}]",
            f"[[{ID - 21}]]",
        ),
        ({"type": "integer", "minimum": 2**53 + 1}, f"{2**53 + 1}", f"{2**53}"),
        ({"type": "integer", "exclusiveMinimum": 2**53}, f"{2**53 + 1}", f"{2**53}"),
        ({"type": "integer", "maximum": -(2**53) - 1}, f"{-(2**53) - 1}", f"{-(2**53)}"),
        ({"type": "integer", "minimum": ID, "maximum": ID}, f"{ID}", f"{ID + 1}"),
        ({"type": "integer", "minimum": 10**20}, f"{10**20}", f"{10**20 - 1}"),
        ({"type": ["integer", "null"], "minimum": ID}, "null", f"{ID - 1}"),
        ({"type": "integer", "exclusiveMinimum": 10**15, "exclusiveMaximum": 10**15 + 2}, f"{10**15 + 1}", f"{10**15}"),
        ({"const": 1.0}, "1", "1.5"),
        ({"const": -0.0}, "0", "1"),
        ({"const": 93.95930089929399}, "93.95930089929399", "93.959300899294"),
        ({"const": 1e30}, "1e+30", "1" + "0" * 30),
        ({"type": "integer", "enum": [2.0, 2.5]}, "2", "2.5"),
        ({"enum": [1, True]}, "true", "1.0"),
        ({"type": "number", "exclusiveMaximum": 5}, "4.99999", "4.9999999999999999999"),
        ({"type": "number", "exclusiveMinimum": 0.1}, "0.11", "0.10000000000000000000001"),
        ({"type": "number", "exclusiveMinimum": 0}, "0.000001", "0.0"),
        ({"type": "number", "exclusiveMaximum": 0}, "-0.5", "-0.0"),
        ({"type": "number", "minimum": 10.5, "maximum": 98.99999999999999}, "98.5", "99"),
        ({"type": "number", "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308}, "-1.5", '"a"'),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, f"{10**17}", f"{2**63}"),
        ({"type": "integer", "format": "uint64"}, "0", "-1"),
        ({"type": "number", "multipleOf": 0.01}, "-12.34", "0.001"),
        ({"type": "integer", "multipleOf": 5, "enum": [5, 6]}, "5", "6"),
    ],
)
def test_threat_32_a_number_of_a_schema_is_enforced_as_it_is_written(schema: Schema, right: str, wrong: str) -> None:
    made = matcher(schema)
    assert accepts(made, right)
    assert not accepts(made, wrong)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"const": ID, "allOf": [{"type": "integer"}]}, f"{ID} cannot be enforced exactly"),
        ({"allOf": [{"const": ID}]}, f"{ID} cannot be enforced exactly"),
        ({"type": "integer", "minimum": ID, "multipleOf": 3}, f"{ID} cannot be enforced exactly"),
        ({"type": "object", "additionalProperties": {"const": ID}}, f"{ID} can be enforced"),
        (
            CLOSED | {"properties": {"id": {"const": ID}}, "additionalProperties": {}},
            f"{ID} can be enforced",
        ),
        (CLOSED | {"properties": {"a": {"const": ID}}}, "a required property is not allowed"),
        ({"type": "array", "items": {"const": ID}, "minItems": 3, "maxItems": 2}, "`minItems` is above `maxItems`"),
        ({"type": "array", "items": {"const": ID}, "minItems": 10**6}, "in an array with a number"),
        (
            {"type": "array", "prefixItems": [{"const": ID}], "items": False, "minItems": 2},
            "`minItems` is above the number of items",
        ),
        ({"type": "number", "minimum": 10**18}, "beyond 1e18"),
        ({"type": "number", "multipleOf": 0.07}, "`multipleOf` is 0.07"),
        ({"type": "integer", "multipleOf": 2**40}, f"`multipleOf` is {2**40}"),
        ({"type": "number", "multipleOf": 0}, "`multipleOf` is 0"),
        ({"type": "integer", "minimum": 10**500}, "more than 400 digits"),
    ],
)
def test_threat_32_a_number_that_cannot_be_kept_is_refused_by_name(schema: Schema, named: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(named)):
        grammar_of_schema(schema)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_threat_32_a_refused_number_is_400_and_nothing_runs(api: Api, path: str) -> None:
    base: dict[str, Any] = a_chat() if path == CHAT else {"model": "fake", "prompt": "hi"}
    response = await api.http.post(path, json=base | {"json_schema": {"allOf": [{"const": ID}]}})
    assert response.status_code == 400
    assert str(ID) in response.json()["error"]["message"]
    assert api.engine.submitted == []


async def test_threat_32_a_large_number_in_the_arguments_of_a_function_is_enforced(api: Api) -> None:
    parameters = CLOSED | {"properties": {"id": {"const": ID}}}
    tool = {"type": "function", "function": {"name": "find", "parameters": parameters}}
    await api.chat(tools=[tool], tool_choice="required")
    assert str(ID) in api.engine.grammars[0]
    assert f'"const": {ID}' not in api.engine.grammars[0]


def test_the_pattern_of_a_range_matches_its_integers_and_no_others() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        least, most = sorted(rng.choice([rng.randint(-3000, 3000), rng.randint(-30, 30)]) for _ in range(2))
        low, high = rng.choice([least, None]), rng.choice([most, None])
        pattern = re.compile(integer_range(low, high))
        for value in (least - 1, least, least + 1, most - 1, most, most + 1, 0, rng.randint(-4000, 4000)):
            is_inside = (low is None or value >= low) and (high is None or value <= high)
            assert bool(pattern.fullmatch(str(value))) == is_inside, (low, high, value)


def test_bounds_of_numbers_move_inwards_only() -> None:
    rng = random.Random(0)
    for _ in range(500):
        digits = rng.randint(1, 17)
        bound = float(f"{rng.uniform(-1000, 1000) * 10 ** rng.randint(-6, 9):.{digits}g}")
        step = abs(bound) / 2**52
        for name, sign in (("minimum", 1), ("exclusiveMinimum", 1), ("maximum", -1), ("exclusiveMaximum", -1)):
            made = matcher({"type": "number", name: bound})
            for number in (bound, bound - sign * step, bound + sign * step, bound - sign, round(bound, 3)):
                for text in (repr(number), f"{number:.25f}"):
                    value = (float(text) - bound) * sign
                    assert not accepts(made, text) or value > 0 or (value == 0 and name in ("minimum", "maximum"))
            assert accepts(made, str(round(bound + sign * (abs(bound) + 10)))), (name, bound)


@pytest.mark.parametrize("bound", [5, 0.5, 100, -3])
def test_usual_numbers_near_an_excluded_bound_are_accepted(bound: float) -> None:
    below, above = matcher({"type": "number", "exclusiveMaximum": bound}), matcher({"exclusiveMinimum": bound})
    for difference in (0.1, 0.01, 0.125, 0.001):
        assert accepts(below, repr(round(bound - difference, 6)))
        assert accepts(above, repr(round(bound + difference, 6)))


def test_rules_of_a_number_copy_only_the_definitions_that_are_needed() -> None:
    names = [f"p{index}" for index in range(200)]
    schema = {
        "type": "object",
        "properties": {"id": {"const": 2**60 + 1}, **{name: {"$ref": f"#/$defs/{name}"} for name in names}},
        "required": ["p7"],
        "additionalProperties": False,
        "$defs": {name: {"enum": [name]} for name in names},
    }
    assert len(grammar_of_schema(schema)) < 100_000
    assert accepts(matcher(schema), '{"p7": "p7"}')
    assert not accepts(matcher(schema), '{"p7": "p8"}')


def test_definitions_that_many_properties_copy_beside_a_number_are_refused() -> None:
    schema = {
        "type": "object",
        "properties": {"id": {"const": 2**60 + 1}, **{f"p{index}": {"$ref": "#/$defs/d"} for index in range(200)}},
        "additionalProperties": False,
        "$defs": {"d": {"enum": [f"a value {index}" for index in range(1000)]}},
    }
    with pytest.raises(SchemaError, match=f"{2**60 + 1} cannot be enforced exactly with this many references"):
        grammar_of_schema(schema)
