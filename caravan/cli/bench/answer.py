"""Answer: the response of an OpenAI-compatible server, and the times at which its tokens arrived."""

import itertools
from dataclasses import dataclass
from typing import Any

import msgspec

from caravan.cli.bench.http_connection import HttpResponse

_MAX_ERROR_CHARACTERS = 200


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    choices: list[_Choice] = []  # msgspec copies it
    usage: _Usage | None = None
    error: Any = None


class AnswerFailed(Exception):
    """The response is an error or incomplete; `kind` groups such failures."""

    def __init__(self, kind: str, text: str = "") -> None:
        super().__init__(f"{kind}: {text}" if text else kind)
        self.kind = kind
        self.text = text


@dataclass(frozen=True)
class Answer:
    """A complete response."""

    token_times: list[
        float
    ]  # of the events that carry tokens, in seconds of time.perf_counter(); empty if not streamed
    prompt_tokens: int | None  # None: the server does not say
    output_tokens: int | None


def read_answer(response: HttpResponse, *, is_stream: bool) -> Answer:
    """Return the complete response of the server; raises AnswerFailed."""
    if response.status != 200:
        raise AnswerFailed(f"HTTP {response.status}", error_text(response.body))
    if not is_stream:
        event = _decoded(response.body)
        return Answer([], *_counts(event.usage))
    return _read_stream(response)


def error_text(body: bytes) -> str:
    """Return the message in the body of an error response, in one line."""
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        content = body.decode("utf-8", "replace")
    for name in ("error", "message", "detail"):
        if isinstance(content, dict) and name in content:
            content = content[name]
    return " ".join(str(content).split())[:_MAX_ERROR_CHARACTERS]


def _read_stream(response: HttpResponse) -> Answer:
    token_times: list[float] = []
    usage: _Usage | None = None
    is_complete = False
    # An event may lie in several pieces, and a piece may hold several events.
    ends = itertools.accumulate(map(len, response.pieces))
    arrived = iter(zip(ends, response.times, strict=True))
    end, time = next(arrived, (0, 0.0))
    position = 0
    for line in response.body.splitlines(keepends=True):
        position += len(line)
        while end < position:
            end, time = next(arrived)
        if not line.startswith(b"data:"):
            continue
        payload = line[5:].strip()
        if payload == b"[DONE]":
            is_complete = True
            continue
        event = _decoded(payload)
        if event.error is not None:
            raise AnswerFailed("error in the stream", error_text(msgspec.json.encode(event.error)))
        usage = event.usage or usage
        for choice in event.choices:
            is_complete = is_complete or choice.finish_reason is not None
            if _carries_token(choice):
                token_times.append(time)
    if not is_complete:
        raise AnswerFailed("stream cut off")
    return Answer(token_times, *_counts(usage))


def _carries_token(choice: _Choice) -> bool:
    """Return whether the event is more than the opening or the end of a choice; a token may have no text."""
    if choice.text or (choice.delta is not None and choice.delta.content):
        return True
    is_opening = choice.delta is not None and choice.delta.role is not None
    return choice.finish_reason is None and not is_opening


def _counts(usage: _Usage | None) -> tuple[int | None, int | None]:
    return (None, None) if usage is None else (usage.prompt_tokens, usage.completion_tokens)


def _decoded(payload: bytes) -> _Event:
    try:
        return msgspec.json.decode(payload, type=_Event)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AnswerFailed("not an answer of this API", str(error)) from None
