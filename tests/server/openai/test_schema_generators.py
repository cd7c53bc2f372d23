"""Schemas of pydantic and zod are enforced; none of their usual keywords is refused."""

import datetime
import decimal
import enum
import ipaddress
import json
import pathlib
import random
import uuid
from typing import Annotated, Any, Literal

import jsonschema_rs
import pytest
from pydantic import (
    AnyUrl,
    AwareDatetime,
    Base64Str,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    IPvAnyAddress,
    RootModel,
    SecretStr,
    StringConstraints,
)
from pydantic.json_schema import JsonSchemaMode

from tests.support.schema_samples import Schema, accepts, matcher, sampled_texts, written

# z.toJSONSchema() of zod 4.6.7, for three targets.
ZOD: dict[str, Schema] = json.loads((pathlib.Path(__file__).parent / "zod_schemas.json").read_text("utf-8"))


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    barks: bool


class Node(BaseModel):
    value: int
    children: list["Node"] = []


class Everything(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=40, description="A name.", examples=["Jo"])
    age: int = Field(ge=0, lt=150)
    score: float = Field(gt=0, le=5)
    step: float = Field(multiple_of=0.5)
    maybe: str | None = None
    color: Color
    size: Size
    literal: Literal["a", 1, True, None]
    tags: list[str] = Field(min_length=1, max_length=5)
    pair: tuple[str, int]
    scores: dict[str, float]
    keyed: dict[Literal["a", "b"], int]
    by_date: dict[datetime.date, int]
    by_color: dict[Color, int]
    code: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
    anything: Any
    pet: Cat | Dog = Field(discriminator="kind")


class Formats(BaseModel):
    date: datetime.date
    starts_at: datetime.datetime
    aware: AwareDatetime
    time: datetime.time
    duration: datetime.timedelta
    identifier: uuid.UUID
    path: pathlib.Path
    any_url: AnyUrl
    address: IPvAnyAddress
    ipv4: ipaddress.IPv4Address
    ipv6: ipaddress.IPv6Address
    secret: SecretStr
    raw: bytes


class Money(BaseModel):
    """Their schemas say less than the fields check."""

    by_key: dict[Annotated[str, StringConstraints(pattern="^k_")], int]
    price: decimal.Decimal
    url: HttpUrl
    encoded: Base64Str


class Cats(RootModel[list[Cat]]):
    pass


def is_valid(schema: Schema, text: str) -> bool:
    """Return whether a text is valid, formats included; not looked at are multiples, which are decimal here."""
    without_multiples = json.loads(json.dumps(schema))
    for part in without_multiples.get("properties", {}).values():
        part.pop("multipleOf", None)
    value = json.loads(text, parse_float=lambda number: min(max(float(number), -1e308), 1e308))  # 1e999 is a number
    return jsonschema_rs.validator_for(without_multiples, validate_formats=True).is_valid(value)


EXAMPLE = {
    "name": "Jo", "age": 3, "score": 4.9, "step": 2.5, "maybe": None, "color": "red", "size": 2, "literal": 1,
    "tags": ["x"], "pair": ["a", 1], "scores": {"x": 1.5}, "keyed": {"a": 1}, "by_date": {"2024-02-29": 1},
    "by_color": {"red": 1}, "code": "ABC", "anything": [1, {}],
    "pet": {"kind": "dog", "barks": True},
}  # fmt: skip


@pytest.mark.parametrize("mode", ["validation", "serialization"])
@pytest.mark.parametrize("model", [Everything, Formats, Node, Cats, Cat])
def test_pydantic_reads_what_the_grammar_of_its_own_schema_writes(model: type[BaseModel], mode: JsonSchemaMode) -> None:
    made = matcher(model.model_json_schema(mode=mode))
    texts = list(sampled_texts(made, random.Random(0), 6, length=3000))
    assert len(texts) > 2
    for text in texts:
        model.model_validate_json(text)


@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_a_schema_that_says_less_than_pydantic_checks_is_enforced_as_it_is(mode: JsonSchemaMode) -> None:
    schema = Money.model_json_schema(mode=mode)
    for text in sampled_texts(matcher(schema), random.Random(0), 6, length=500):
        assert is_valid(schema, text), text


def test_a_value_of_a_pydantic_model_is_accepted_as_json_writes_it() -> None:
    made = matcher(Everything.model_json_schema())
    assert accepts(made, written(EXAMPLE))
    for name, wrong in {
        "age": 150, "score": 0, "keyed": {"c": 1}, "by_date": {"2023-02-29": 1}, "step": 0.3,
        "pet": {"kind": "cow"}, "size": 3,
    }.items():  # fmt: skip
        assert not accepts(made, written({**EXAMPLE, name: wrong})), name


@pytest.mark.parametrize("name", ZOD)
def test_a_schema_of_zod_is_enforced(name: str) -> None:
    made = matcher(ZOD[name])
    texts = list(sampled_texts(made, random.Random(0), 4, length=3000))
    assert texts
    for text in texts:
        assert is_valid(ZOD[name], text), text


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("union", {"type": "dog", "bark": True}, {"type": "dog", "lives": 3}),
        ("recursive", {"value": "a", "children": [{"value": "b", "children": []}]}, {"value": "a", "children": [1]}),
        ("recKeyRe", {"k_a": True}, {"a": True}),
        ("never", {}, {"x": 1}),
        ("loose", {"a": "x", "more": 1}, {"more": 1}),
        ("catchall", {"a": "x", "more": 1}, {"a": "x", "more": "y"}),
        ("xor", 1, None),
    ],
)
def test_a_schema_of_zod_means_what_it_says(name: str, right: Any, wrong: Any) -> None:
    made = matcher(ZOD[f"{name} draft-2020-12"])
    assert accepts(made, written(right))
    assert not accepts(made, written(wrong))
