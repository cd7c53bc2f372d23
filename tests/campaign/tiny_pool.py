"""Requests of every kind in a pool too small for them, with crashes: each response equals that of a run alone."""

import asyncio
import itertools
import json
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.campaign.streams import SCHEMA, TOPICS, client_of
from tests.support.running_server import RunningServer

NUM_AT_ONCE = 32
# About 700 tokens of the default model: 32 requests at once are preempted all the time.
OPTIONS = ["--kv-cache-memory", "16MiB", "--max-model-len", "512"]
_PLACES = {"id", "created", "warnings"}  # differ between two runs of one request
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {"topic": {"type": "string", "maxLength": 24}},
            "required": ["topic"],
            "additionalProperties": False,
        },
    },
}

Body = dict[str, Any]


@dataclass
class TinyPoolReport:
    """The counts of a run, and the requests whose answers differ."""

    num_requests: int = 0
    num_kills: int = 0
    num_preemptions: float = 0.0
    num_replayed: float = 0.0
    wrong: list[str] = field(default_factory=list)  # lost, refused, cut or changed


def requests_of_all_kinds(num: int) -> list[tuple[str, Body]]:
    """Return paths and bodies: completions, chats, tool calls, grammars, scores and embeddings in turn."""
    return [_request(index) for index in range(num)]


async def answers_alone(server: RunningServer, requests: list[tuple[str, Body]]) -> list[str]:
    """Return the answer to each request, of which one runs at a time."""
    async with client_of(server.url) as http:
        return [await answer_of(http, path, body) for path, body in requests]


async def tiny_pool_campaign(
    server: RunningServer, requests: list[tuple[str, Body]], expected: list[str], *, num_kills: int, seed: int
) -> TinyPoolReport:
    """Send all requests, NUM_AT_ONCE at a time, and kill the engine evenly over them."""
    report = TinyPoolReport(num_requests=len(requests))
    dice = random.Random(seed)
    numbers = list(range(len(requests)))
    dice.shuffle(numbers)
    due = {len(numbers) * (kill + 1) // (num_kills + 1) for kill in range(num_kills)}
    num_done = itertools.count(1)
    async with client_of(server.url) as http:

        async def keep_asking(left: Iterator[int]) -> None:
            for number in left:
                await check(http, *requests[number], expected[number], report.wrong)
                if next(num_done) in due:
                    os.kill(server.engine_pid(), signal.SIGKILL)
                    report.num_kills += 1

        left = iter(numbers)
        await asyncio.gather(*(keep_asking(left) for _ in range(NUM_AT_ONCE)))
    report.num_preemptions = server.metric("num_preemptions_total")
    report.num_replayed = server.metric("requests_replayed_total")
    return report


async def answer_of(http: httpx.AsyncClient, path: str, body: Body) -> str:
    """Return what is the same in every run, as JSON; raises HTTPStatusError, and AssertionError for a cut stream."""
    async with http.stream("POST", path, json=body) as response:
        content = await response.aread()
    response.raise_for_status()
    if not body.get("stream"):
        return json.dumps(_without_places(json.loads(content)), sort_keys=True)
    events = [line.removeprefix("data: ") for line in content.decode().split("\n\n") if line.startswith("data: ")]
    assert events[-1:] == ["[DONE]"], events[-1:]
    joined = _joined([json.loads(event) for event in events[:-1]])
    return json.dumps(joined, sort_keys=True)  # which field comes first depends on the cuts, too


async def check(http: httpx.AsyncClient, path: str, body: Body, expected: str, wrong: list[str]) -> None:
    """Ask once, and add to `wrong` if there is no answer or another one than expected."""
    try:
        answer = await answer_of(http, path, body)
    except (AssertionError, httpx.HTTPError) as error:
        wrong.append(f"{path} {json.dumps(body)[:200]}: {error!r}"[:500])
    else:
        if answer != expected:
            wrong.append(f"{path} {json.dumps(body)[:200]}: {answer} instead of {expected}"[:8000])


def _request(index: int) -> tuple[str, Body]:
    topic = TOPICS[index % len(TOPICS)]
    prompt = f"{index}. A few lines about {topic}:"
    common: Body = {"model": "smollm2", "max_tokens": 16 + 7 * (index % 5), "seed": index, "return_token_ids": True}
    completion = common | {"prompt": prompt}
    chat = common | {"messages": [{"role": "user", "content": f"Question {index}: what are {topic}?"}]}
    streamed: Body = {"stream": True, "stream_options": {"include_usage": True}}
    to_completions, to_chat = "/v1/completions", "/v1/chat/completions"
    match index % 15:
        case 0:
            return to_completions, completion | {"temperature": 0} | streamed
        case 1:
            return to_completions, completion | {"temperature": 0.9, "top_p": 0.95, "frequency_penalty": 0.3} | streamed
        case 2:
            return to_completions, completion | {"logprobs": 3} | streamed
        case 3:
            return to_completions, completion | {"temperature": 0.8, "n": 3}
        case 4:
            form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}
            return to_completions, completion | {"response_format": form, "temperature": 0.7} | streamed
        case 5:
            long = " ".join(f"{word} {TOPICS[word % len(TOPICS)]}" for word in range(40 + index % 30))
            return to_completions, completion | {"prompt": f"{prompt} {long}", "temperature": 0, "stop": ["\n\n"]}
        case 6:
            return to_chat, chat | {"temperature": 0, "logprobs": True, "top_logprobs": 2} | streamed
        case 7:
            return to_chat, chat | {"temperature": 1, "top_k": 40, "min_p": 0.02, "n": 2} | streamed
        case 8:
            return to_chat, chat | {"temperature": 0.8, "tools": [_TOOL], "tool_choice": "required"} | streamed
        case 9:
            return to_completions, completion | {"echo": True, "max_tokens": 0, "logprobs": 2}
        case 10:
            return to_completions, completion | {"prompt_logprobs": 1, "best_of": 3, "temperature": 1}
        case 11:
            return "/v1/embeddings", {"model": "smollm2", "input": [prompt, f"{topic} {index}"]}
        case 12:
            return to_completions, completion | {"regex": "[a-z ]{10,30}[.]", "temperature": 0.9} | streamed
        case 13:
            begun = [*chat["messages"], {"role": "assistant", "content": f"{topic.capitalize()} are"}]
            return to_chat, chat | {"messages": begun, "continue_final_message": True, "repetition_penalty": 1.2}
        case _:
            bias = {"logit_bias": {"198": -100}, "presence_penalty": 0.5, "min_tokens": 8, "temperature": 1}
            return to_completions, completion | {"prompt": [prompt, f"{prompt} And"]} | bias


def _without_places(value: Any) -> Any:
    """Return an answer without ids, times, and where its prompt's prefix was found."""
    if isinstance(value, dict):
        return {name: _without_places(item) for name, item in value.items() if name not in _PLACES | {"usage"}}
    return [_without_places(item) for item in value] if isinstance(value, list) else value


def _joined(chunks: list[Body]) -> dict[int, dict[str, list[Any]]]:
    """Return what each choice of a stream has of every field: where a text is cut into chunks is a matter of time."""
    choices: dict[int, dict[str, list[Any]]] = {}
    for chunk in chunks:
        assert "error" not in chunk, chunk
        for part in chunk["choices"]:
            choice = choices.setdefault(part["index"], {})
            for name, value in _fields(part):
                if isinstance(value, list):
                    choice.setdefault(name, []).extend(value)
                elif isinstance(value, str) and name not in ("finish_reason", "role"):
                    choice[name] = ["".join([*choice.get(name, []), value])]
                elif value is not None:
                    choice.setdefault(name, []).append(value)
    assert choices
    assert all(len(choice["finish_reason"]) == 1 for choice in choices.values()), choices
    return dict(sorted(choices.items()))


def _fields(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each leaf of a choice in a chunk; lists of tokens and scores are leaves."""
    for name, value in part.items():
        if name == "tool_calls":
            for call in value:
                yield from _fields(call, f"{path}{name}.{call['index']}.")
        elif isinstance(value, dict):
            yield from _fields(value, f"{path}{name}.")
        elif name not in _PLACES | {"index"}:
            yield (name if name in ("finish_reason", "role") else f"{path}{name}"), value
