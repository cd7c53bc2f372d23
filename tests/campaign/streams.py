"""Many different concurrent requests, and the parts of their responses that must not change."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import httpx

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "legs": {"type": "integer"},
        "tame": {"type": "boolean"},
    },
    "required": ["name", "legs", "tame"],
    "additionalProperties": False,
}
TOPICS = ["rivers", "bread", "the moon", "clocks", "emoji 😀🎉", "東京", "prime numbers", "the sea"]


@dataclass(frozen=True)
class Choice:
    """All of one choice that is the same whenever its request is asked."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: str  # as JSON
    finish_reason: str | None


def mixed_bodies(num: int) -> list[dict[str, Any]]:
    """Return streamed completions of all kinds, in turn: greedy, sampled, constrained, several choices, scored."""
    bodies = []
    for index in range(num):
        prompt = f"{index}. A few lines about {TOPICS[index % len(TOPICS)]}:"
        body: dict[str, Any] = {"model": "smollm2", "prompt": prompt, "max_tokens": 40 + 11 * (index % 9)}
        body |= {"stream": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
        match index % 6:
            case 0:
                body |= {"temperature": 0}
            case 1:
                body |= {"temperature": 0.9, "top_p": 0.95, "seed": index, "frequency_penalty": 0.3}
            case 2:
                body |= {"temperature": 1, "seed": index, "logprobs": 3}
            case 3:
                body |= {"temperature": 0.8, "seed": index, "n": 3}
            case 4:
                schema = {"name": "animal", "schema": SCHEMA, "strict": True}
                body |= {"prompt": f"An animal as JSON, number {index}: ", "temperature": 0.7, "seed": index}
                body |= {"response_format": {"type": "json_schema", "json_schema": schema}, "max_tokens": 120}
            case 5:
                long = " ".join(f"{word} {TOPICS[word % len(TOPICS)]}" for word in range(60 + index))
                body |= {"prompt": f"{prompt} {long}", "temperature": 0, "logprobs": 1, "stop": ["\n\n\n"]}
        bodies.append(body)
    return bodies


def short_bodies(num: int) -> list[dict[str, Any]]:
    """Return such completions for a model with a context of 512 bytes."""
    return [body | {"prompt": body["prompt"][:300]} for body in mixed_bodies(num)]


async def stream_of(http: httpx.AsyncClient, body: dict[str, Any]) -> list[Choice]:
    """Return the choices of a streamed completion; raises AssertionError for anything amiss."""
    num_choices = body.get("n", 1)
    texts = [""] * num_choices
    token_ids: list[list[int]] = [[] for _ in texts]
    logprobs: list[list[Any]] = [[] for _ in texts]
    reasons: list[list[str]] = [[] for _ in texts]
    async with http.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200, (response.status_code, await response.aread())
        lines = [line async for line in response.aiter_lines()]
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1:] == ["[DONE]"], events[-1:]
    *chunks, last = map(json.loads, events[:-1])
    assert "error" not in last, last
    for chunk in chunks:
        for share in chunk["choices"]:
            index = share["index"]
            assert not reasons[index], "nothing follows the end"
            texts[index] += share["text"]
            token_ids[index] += share["token_ids"]
            logprobs[index] += [share["logprobs"]] if share["logprobs"] else []
            reasons[index] += [share["finish_reason"]] if share["finish_reason"] else []
    assert last["choices"] == [], last
    assert last["usage"]["completion_tokens"] == sum(map(len, token_ids))
    return [
        Choice(text, tuple(ids), json.dumps(_joined(scores)), reason)
        for text, ids, scores, (reason,) in zip(texts, token_ids, logprobs, reasons, strict=True)
    ]


async def all_streams(url: str, bodies: list[dict[str, Any]]) -> list[list[Choice]]:
    """Return the answers to requests that run at the same time."""
    async with client_of(url) as http:
        return await asyncio.gather(*(stream_of(http, body) for body in bodies))


def client_of(url: str) -> httpx.AsyncClient:
    """Return a client that waits long and opens as many connections as it likes."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    return httpx.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=limits)


def _joined(chunks: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the log-probabilities of chunks in one: where a text is cut into chunks is a matter of time."""
    return {name: [entry for chunk in chunks for entry in chunk[name]] for name in (chunks[0] if chunks else ())}
