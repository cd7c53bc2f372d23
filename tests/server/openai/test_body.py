"""Bodies of requests: what is kept of them, how many bytes they take together, and in which encodings they come."""

import asyncio
import gzip
import json
import sys
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from caravan.server.generation.request_limits import RequestLimits
from caravan.server.http.body import _decode_fields, _plan
from caravan.server.http.body_memory import SMALL_BYTES, BodyMemory
from caravan.server.http.concurrency_limit import ConcurrencyLimit
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.completions import CompletionRequest
from caravan.server.openai.protocol.responses import ResponsesRequest
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, COMPLETIONS, Api, Body, a_chat, answered, open_api
from tests.support.error_answers import error_of
from tests.support.fakes import says
from tests.support.waiting import until

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

JSON = {"content-type": "application/json"}
LONG = 2 * SMALL_BYTES


def nested(num: int) -> list[Any]:
    return [[] for _ in range(num)]


@pytest.mark.parametrize("size", [1, LONG])
async def test_threat_28_a_field_without_meaning_is_dropped_and_still_named(api: Api, size: int) -> None:
    answer = await api.complete(metadata={"a": nested(size // 4)}, user="u" * size, store=None)
    assert answer["warnings"] == [
        "`metadata` has no effect on this server.",
        "`user` has no effect on this server.",
    ]


def strings_in(values: list[Any]) -> set[str]:
    """Return the strings that are reached from the fields and attributes of values."""
    found: set[str] = set()
    rest = list(values)
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            found.add(value)
        elif isinstance(value, dict):
            rest += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            rest += value
        elif isinstance(value, BaseModel):
            rest += [value.__dict__, value.model_extra, value.__pydantic_private__]
    return found


def test_threat_28_a_request_keeps_nothing_of_fields_without_meaning() -> None:
    chat = a_chat() | {
        "metadata": {"a": ["b"]},
        "prediction": {"type": "content", "content": "c"},
        "stream": True,
        "stream_options": {"include_obfuscation": ["d"]},
    }
    request = ChatRequest.model_validate(chat)
    response = ResponsesRequest.model_validate({"model": "m", "input": "a", "reasoning": {"summary": ["x"]}})
    kept = strings_in([request, response])
    assert not kept & {"b", "c", "d", "x"}
    assert "hi" in kept
    assert len(request.warnings()) == 3


@pytest.mark.slow
def test_threat_28_values_of_fields_without_meaning_are_never_made() -> None:
    def peak_bytes(body: Body) -> int:
        text = json.dumps(body).encode()
        tracemalloc.start()
        try:
            fields, _ = _plan(text, CompletionRequest.fields_with_meaning())
            value = _decode_fields(text, fields, CompletionRequest.fields_with_meaning())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert set(value) == set(body)
        return peak

    lists = nested(100_000)
    assert peak_bytes({"model": "m", "prompt": "hi", "metadata": lists}) < 1_000_000
    assert peak_bytes({"model": "m", "prompt": lists}) > 5_000_000  # as they would take


@pytest.mark.slow
async def test_threat_28_an_unknown_field_is_named_in_a_long_body_as_in_a_short_one(api: Api) -> None:
    errors = [
        error_of(await api.http.post(COMPLETIONS, json={"model": "fake", "prompt": "hi", "cache": nested(size)}))
        for size in (1, LONG)
    ]
    assert errors[0] == errors[1]
    assert errors[0]["message"] == "Unknown field `cache`."


async def test_a_long_body_is_read_as_a_short_one(api: Api) -> None:
    bias = {"1": 1.5, "2": -3}
    for padding in ("", " " * LONG):
        body = json.dumps({"model": "fake", "prompt": [65, 66], "logit_bias": bias, "stop": ["é"], "seed": 2**63})
        answered(await api.http.post(COMPLETIONS, content=body + padding, headers=JSON))
    (first, first_params), (second, second_params) = [(call[0], call[1]) for call in api.engine.submitted]
    assert first == second == [65, 66]
    assert first_params == second_params


@pytest.mark.slow
async def test_threat_28_an_object_of_too_many_fields_is_refused(api: Api) -> None:
    many = {f"f{index}": 1 for index in range(300)}
    error = error_of(await api.http.post(COMPLETIONS, json={"model": "fake", "prompt": "hi"} | many))
    assert "at most 256 fields" in error["message"]
    error = error_of(await api.http.post(CHAT, json={"model": "fake", "messages": [{"role": "user"} | many] * 400}))
    assert error["param"] == "messages[0]"


def test_bodies_take_bytes_of_the_memory_until_they_are_released() -> None:
    memory = BodyMemory(10 * LONG)
    first, second, third = (memory.reserve("") for _ in range(3))
    assert first.resize(6 * LONG)
    assert second.grow(4 * LONG)
    assert not second.grow(5 * LONG)
    assert not third.resize(SMALL_BYTES + 1)
    assert third.resize(SMALL_BYTES)  # small ones are not counted
    assert memory.num_bytes == 10 * LONG
    first.release()
    assert third.resize(3 * LONG)
    second.release()
    third.release()
    assert memory.num_bytes == 0
    assert first.resize(20 * LONG)  # alone, however large


def test_threat_28_a_key_that_fills_the_memory_leaves_others_their_share() -> None:
    memory = BodyMemory(10 * LONG)
    alice, more_of_alice, bob, more_of_bob = (memory.reserve(name) for name in ("alice", "alice", "bob", "bob"))
    assert alice.resize(10 * LONG)
    assert not more_of_alice.resize(LONG)
    assert bob.resize(3 * LONG)
    assert not more_of_bob.resize(3 * LONG)
    assert more_of_bob.resize(2 * LONG)
    alice.release()
    bob.release()
    more_of_bob.release()
    assert memory.num_bytes == 0


class Slow:
    """A body of `num_bytes` bytes of which the client sends the first half only, until it is released."""

    def __init__(self, num_bytes: int) -> None:
        self.go_on = asyncio.Event()
        text = json.dumps({"model": "fake", "prompt": "hi"}).encode()
        self._body = text + b" " * (num_bytes - len(text))

    async def chunks(self) -> AsyncIterator[bytes]:
        half = len(self._body) // 2
        yield self._body[:half]
        await self.go_on.wait()
        yield self._body[half:]


@pytest.mark.parametrize("is_declared", [True, False])
async def test_threat_28_a_body_over_the_memory_limit_is_429_until_memory_is_free(is_declared: bool) -> None:
    concurrency_limit = ConcurrencyLimit(16, BodyMemory(3 * LONG))
    async with open_api(concurrency_limit=concurrency_limit) as api:
        slow = Slow(2 * LONG)
        length = {"content-length": str(2 * LONG)} if is_declared else {}
        first = asyncio.create_task(api.http.post(COMPLETIONS, content=slow.chunks(), headers=JSON | length))
        await until(lambda: concurrency_limit.bodies.num_bytes >= LONG)
        if is_declared:
            assert concurrency_limit.bodies.num_bytes == 2 * LONG
        large = {"model": "fake", "prompt": "hi", "user": "u" * 3 * LONG}
        refused = await api.http.post(COMPLETIONS, json=large)
        assert error_of(refused, 429)["code"] == "server_overloaded"
        assert refused.headers["retry-after"] == "1"
        assert "connection" not in refused.headers
        assert (await api.complete())["choices"]  # small ones get in
        slow.go_on.set()
        assert (await first).status_code == 200
        assert concurrency_limit.bodies.num_bytes == 0
        assert answered(await api.http.post(COMPLETIONS, json=large))
        assert api.sample("admission_rejections_total", reason="body_memory") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "least", "most"),
    [
        (json.dumps("x" * LONG), LONG, 1.1 * LONG),
        (json.dumps("é" * LONG, ensure_ascii=False), 2 * LONG, 4.1 * LONG),
        (json.dumps("x" * LONG + "😀", ensure_ascii=False), 4 * LONG, 4.1 * LONG),
        (json.dumps([300] * LONG), 36 * LONG, 50 * LONG),
        (json.dumps([{}] * LONG), 64 * LONG, 300 * LONG),
        ('"a", "user": ' + json.dumps(["x"] * LONG), 0, 0),  # but a field without meaning
    ],
    ids=["text", "wide text", "wider text", "numbers", "objects", "dropped"],
)
def test_threat_28_a_body_counts_as_the_objects_that_are_made_of_it(prompt: str, least: int, most: int) -> None:
    body = ('{"model": "fake", "prompt": ' + prompt + "}").encode()
    fields, num_bytes = _plan(body, CompletionRequest.fields_with_meaning())
    assert fields is not None
    assert least <= num_bytes <= most + 1000


async def test_threat_28_a_body_counts_until_its_request_ends() -> None:
    concurrency_limit = ConcurrencyLimit(16, BodyMemory())
    async with open_api(says("Hello!"), concurrency_limit=concurrency_limit) as api:
        api.engine.released.clear()
        body = {"model": "fake", "prompt": ["x" * 400] * 200, "max_tokens": 1, "user": "u" * LONG}
        running = asyncio.create_task(api.http.post(COMPLETIONS, json=body))
        await until(lambda: len(api.engine.submitted) == 200)
        assert 200 * 400 < concurrency_limit.bodies.num_bytes < 200 * 400 + LONG
        api.engine.released.set()
        answered(await running)
        assert concurrency_limit.bodies.num_bytes == 0


@pytest.mark.parametrize("fields", [{}, {"user": "u" * LONG}])
@pytest.mark.parametrize(
    ("encoding", "encode"),
    [("gzip", gzip.compress), ("X-GZIP", gzip.compress), ("zstd", zstd.compress), ("identity", bytes), (" ", bytes)],
)
async def test_bodies_may_be_gzip_or_zstd(api: Api, encoding: str, encode: Any, fields: Body) -> None:
    body = encode(json.dumps({"model": "fake", "prompt": "hi"} | fields).encode())
    response = await api.http.post(COMPLETIONS, content=body, headers=JSON | {"content-encoding": encoding})
    assert answered(response)["choices"][0]["text"] == "Hello!"


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, zstd", "gzip,gzip", "none", "\x1b[31m"])
async def test_another_encoding_is_415_and_named(api: Api, encoding: str) -> None:
    headers = JSON | {"content-encoding": encoding}
    error = error_of(await api.http.post(COMPLETIONS, content=b"{}", headers=headers), 415)
    assert "use gzip, zstd or none" in error["message"]
    if encoding.isprintable():
        assert f'"{", ".join(encoding.replace(" ", "").split(","))}"' in error["message"]


@pytest.mark.parametrize("encode", [gzip.compress, zstd.compress], ids=["gzip", "zstd"])
async def test_threat_8_a_body_that_decodes_to_more_than_the_limit_is_413(chat_ml: ChatTemplate, encode: Any) -> None:
    encoding = {gzip.compress: "gzip", zstd.compress: "zstd"}[encode]
    async with open_api(limits=RequestLimits(max_body_bytes=5000)) as api:
        text = json.dumps({"model": "fake", "prompt": "hi"}).encode()
        for size, status in ((5000, 200), (5001, 413), (10_000_000, 413)):
            body = encode(text + b" " * (size - len(text)))
            headers = JSON | {"content-encoding": encoding}
            assert (await api.http.post(COMPLETIONS, content=body, headers=headers)).status_code == status


@pytest.mark.parametrize("encode", [gzip.compress, zstd.compress], ids=["gzip", "zstd"])
async def test_damaged_encodings_are_400(api: Api, encode: Any) -> None:
    encoding = {gzip.compress: "gzip", zstd.compress: "zstd"}[encode]
    body = encode(json.dumps({"model": "fake", "prompt": "hi"}).encode())
    for wrong, says_ in (
        (b"{}", "is not"),
        (body[:-1], "is truncated"),
        (b"", "is truncated"),
        (body + body, "more data after"),
        (body[:12] + bytes([body[12] ^ 255]) + body[13:], ""),
    ):
        headers = JSON | {"content-encoding": encoding}
        error = error_of(await api.http.post(COMPLETIONS, content=wrong, headers=headers))
        assert says_ in error["message"]
    assert api.engine.submitted == []
