"""/v1/embeddings: its shapes, its fields, what it refuses."""

import base64
import math
import struct
from typing import Any

import pytest

from tests.server.openai.api import Api, Body, open_api
from tests.support.error_answers import error_of

PATH = "/v1/embeddings"


async def embed(api: Api, **fields: Any) -> Body:
    response = await api.http.post(PATH, json={"model": "fake", "input": "hi"} | fields)
    assert response.status_code == 200, response.text
    body: Body = response.json()
    return body


async def test_a_response_has_the_fields_of_openai(api: Api) -> None:
    answer = await embed(api, user="me")
    (vector,) = answer.pop("data")
    assert (vector["object"], vector["index"]) == ("embedding", 0)
    length = math.hypot(2, ord("i"))
    assert vector["embedding"] == pytest.approx([2 / length, ord("i") / length, 0])
    assert answer == {
        "object": "list",
        "model": "fake",
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
        "warnings": ["`user` has no effect on this server."],
    }
    assert api.sample("prompt_tokens_total") == 2


@pytest.mark.parametrize("texts", [["a", "bc", "a"], [[97], [98, 99], [97]]])
async def test_several_inputs_come_in_order(api: Api, texts: list[Any]) -> None:
    data = (await embed(api, input=texts))["data"]
    assert [vector["index"] for vector in data] == [0, 1, 2]
    assert data[0]["embedding"] == data[2]["embedding"] != data[1]["embedding"]
    (vector,) = (await embed(api, input=[98, 99]))["data"]
    assert vector["embedding"] == data[1]["embedding"]


async def test_both_formats_have_the_same_numbers(api: Api) -> None:
    (plain,) = (await embed(api, pooling="last"))["data"]
    (packed,) = (await embed(api, pooling="last", encoding_format="base64"))["data"]
    assert list(struct.unpack("<3f", base64.b64decode(packed["embedding"]))) == plain["embedding"]
    assert plain["embedding"][2] > 0


async def test_fewer_dimensions_have_length_one_again(api: Api) -> None:
    (vector,) = (await embed(api, dimensions=1))["data"]
    assert vector["embedding"] == [1.0]


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"input": ""}, "input", "empty"),
        ({"input": ["a", ""]}, "input[1]", "empty"),
        ({"input": [[1], [260]]}, "input[1]", "260"),
        ({"input": 7}, "input", "must be a string"),
        ({"input": ["a"] * 2049}, "input", "2049"),
        ({"dimensions": 4}, "dimensions", "have 3"),
        ({"dimensions": 0}, "dimensions", "at least 1"),
        ({"encoding_format": "hex"}, "encoding_format", "float"),
        ({"pooling": "max"}, "pooling", "mean"),
        ({"model": "other"}, "model", "does not exist"),
        ({"n": 2}, "n", "Unknown field"),
    ],
)
async def test_a_wrong_value_is_named(api: Api, fields: Body, param: str, says: str) -> None:
    response = await api.http.post(PATH, json={"model": "fake", "input": "hi"} | fields)
    error = error_of(response, 404 if "model" in fields else 400)
    assert error["param"] == param
    assert says in error["message"]


async def test_a_text_too_long_is_refused_before_anything_runs(api: Api) -> None:
    response = await api.http.post(PATH, json={"model": "fake", "input": ["hi", "x" * 513]})
    assert error_of(response, 400)["code"] == "context_length_exceeded"
    assert not api.engine.submitted
    await embed(api, input="x" * 512)


async def test_an_engine_error_is_an_error_response() -> None:
    async with open_api() as api:
        api.engine.fails_after = 0
        response = await api.http.post(PATH, json={"model": "fake", "input": "hi"})
        assert "secret" not in response.text
        assert error_of(response, 500)["type"] == "server_error"
        api.engine.is_ready = False
        response = await api.http.post(PATH, json={"model": "fake", "input": "hi"})
        assert error_of(response, 503)["code"] == "unavailable"
