"""Embeddings."""

import base64
import math
import struct

from tests.conformance.target import Body, Target

PATH = "/v1/embeddings"


def _embed(target: Target, **fields: object) -> Body:
    response = target.post(PATH, {"model": target.model, "input": "The sea is calm."} | fields)
    assert response.status_code == 200, f"status {response.status_code}: {response.text[:200]}"
    body: Body = response.json()
    return body


def vectors_have_their_shape(target: Target) -> None:
    """An answer is a list with an embedding for each input, in order, and the usage."""
    answer = _embed(target, input=["one", "two", "one"])
    assert answer["object"] == "list"
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    assert {entry["object"] for entry in answer["data"]} == {"embedding"}
    assert answer["data"][0]["embedding"] == answer["data"][2]["embedding"] != answer["data"][1]["embedding"]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0


def vectors_have_length_one(target: Target) -> None:
    """A vector's length is 1."""
    (entry,) = _embed(target)["data"]
    assert abs(math.hypot(*entry["embedding"]) - 1) < 1e-3


def both_formats_agree(target: Target) -> None:
    """base64 holds the same numbers as float."""
    (plain,) = _embed(target)["data"]
    (packed,) = _embed(target, encoding_format="base64")["data"]
    raw = base64.b64decode(packed["embedding"])
    assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == plain["embedding"]


def fewer_dimensions(target: Target) -> None:
    """`dimensions` shortens the vector."""
    assert len(_embed(target, dimensions=8)["data"][0]["embedding"]) == 8


def wrong_inputs_are_refused(target: Target) -> None:
    """An empty input, too many dimensions and an unknown format are refused."""
    target.refused(PATH, {"input": ""})
    target.refused(PATH, {"input": "hi", "dimensions": 10**6})
    target.refused(PATH, {"input": "hi", "encoding_format": "hex"})
