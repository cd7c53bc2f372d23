"""Requests to /api/chat and /api/generate, and the lines of their streams."""

import json
from typing import Any

from tests.server.openai.api import Api, Body

CHAT = "/api/chat"
GENERATE = "/api/generate"
CHANGING = {"created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}


def a_message(**fields: Any) -> Body:
    """Return the body of a chat in which the user says "hi"."""
    return {"model": "fake", "messages": [{"role": "user", "content": "hi"}]} | fields


def a_prompt(**fields: Any) -> Body:
    """Return the body of a request to continue "hi"."""
    return {"model": "fake", "prompt": "hi"} | fields


async def whole(api: Api, path: str, body: Body) -> Body:
    """Return the response in one object, which must be a success."""
    response = await api.http.post(path, json=body | {"stream": False})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    answer: Body = response.json()
    return answer


async def lines(api: Api, path: str, body: Body) -> list[Body]:
    """Return the lines of a stream, each of which must be an object."""
    response = await api.http.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return lines_in(response.text)


def lines_in(text: str) -> list[Body]:
    """Return the lines of a whole stream."""
    assert text.endswith("\n")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def joined(parts: list[Body]) -> Body:
    """Return the response that the lines of a stream make, without what changes from one request to the next."""
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    answer = dict(parts[-1])
    if "message" in answer:
        messages = [part["message"] for part in parts]
        answer["message"] = {"role": "assistant", "content": "".join(one["content"] for one in messages)}
        thought = "".join(one.get("thinking", "") for one in messages)
        calls = [call for one in messages for call in one.get("tool_calls", [])]
        answer["message"] |= ({"thinking": thought} if thought else {}) | ({"tool_calls": calls} if calls else {})
    else:
        answer["response"] = "".join(part["response"] for part in parts)
        thought = "".join(part.get("thinking", "") for part in parts)
        answer |= {"thinking": thought} if thought else {}
    logprobs = [entry for part in parts for entry in part.get("logprobs", [])]
    return stable(answer | ({"logprobs": logprobs} if logprobs else {}))


def stable(answer: Body) -> Body:
    """Return a response without times and without the ids of calls."""
    kept = {name: value for name, value in answer.items() if name not in CHANGING}
    if "tool_calls" in kept.get("message", {}):
        calls = [{"function": call["function"]} for call in kept["message"]["tool_calls"]]
        kept["message"] = kept["message"] | {"tool_calls": calls}
    return kept
