"""vllm bench."""

from tests.conformance.target import Body, Target, text_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USAGE: Body = {"stream_options": {"include_usage": True}}


def completions_are_measured(target: Target) -> None:
    """A completion with `logprobs` null and no penalty has the text of one without these fields."""
    request = {"prompt": "The sea is", "repetition_penalty": 1.0, "max_tokens": 8, "logprobs": None}
    chunks = target.chunks_of(COMPLETIONS, request | USAGE | {"temperature": 0})
    assert text_of(chunks) == target.complete(max_tokens=8)["choices"][0]["text"]
    assert chunks[-1]["usage"]["completion_tokens"] == 8


def its_request_ids_come_back(target: Target) -> None:
    """The `x-request-id` that it makes for a request comes back."""
    body = {"model": target.model, "prompt": "The sea is", "max_tokens": 1, "stream": True} | USAGE
    headers = {"x-request-id": "bench-1f3a5b7c-0"}
    response = target.http.post(COMPLETIONS, json=body, headers=headers)
    assert response.headers["x-request-id"] == headers["x-request-id"]
    assert "[DONE]" in response.text


def chats_are_measured(target: Target) -> None:
    """A chat has parts of text, and with `ignore_eos` as many tokens as were asked for."""
    parts = [{"type": "text", "text": "Say hello."}]
    request = {"messages": [{"role": "user", "content": parts}], "max_completion_tokens": 40, "ignore_eos": True}
    chunks = target.chunks_of(CHAT, request | USAGE)
    assert chunks[-1]["usage"]["completion_tokens"] == 40
    first = next(chunk for chunk in chunks if chunk["choices"][0]["delta"].get("content"))
    assert first is not chunks[-1]
