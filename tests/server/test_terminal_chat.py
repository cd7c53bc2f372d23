"""The chat in the terminal: what it sends, what it shows, and how it ends."""

import io
import json
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import httpx

from server.terminal_chat import run_chat

URL = "http://127.0.0.1:8000"
DONE = b"data: [DONE]\n\n"


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def piece(text: str, finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]})


def usage(num_tokens: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": num_tokens}})


def says(*texts: str) -> list[bytes]:
    return [*map(piece, texts), piece("", "stop"), usage(len(texts)), DONE]


def refusal(status: int, message: str, code: str | None = None) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "code": code}})


class Body(httpx.SyncByteStream):
    """A response body that may raise between two chunks, and knows whether it was closed."""

    def __init__(self, chunks: Iterable[bytes | BaseException]) -> None:
        self.chunks = chunks
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    def close(self) -> None:
        self.is_closed = True


Answer = list[bytes] | Body | httpx.Response | httpx.HTTPError


class FakeServer(httpx.MockTransport):
    """Gives its answers in turn, and remembers the requests."""

    def __init__(self, *answers: Answer, models: httpx.Response | Exception | None = None) -> None:
        super().__init__(self._respond)
        self.answers = list(answers)
        self.models = models or httpx.Response(200, json={"object": "list", "data": [{"id": "tiny"}, {"id": "other"}]})
        self.requests: list[httpx.Request] = []
        self.bodies: list[dict[str, Any]] = []

    def _respond(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.method == "GET":
            assert request.url.path == "/v1/models"
            if isinstance(self.models, Exception):
                raise self.models
            return self.models
        assert request.url.path == "/v1/chat/completions"
        self.bodies.append(json.loads(request.content))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        return httpx.Response(200, stream=answer if isinstance(answer, Body) else Body(answer))

    def messages(self, index: int = -1) -> list[tuple[str, str]]:
        return [(message["role"], message["content"]) for message in self.bodies[index]["messages"]]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class InterruptedTerminal(Terminal):
    """A terminal at which Ctrl-C is pressed after the lines that were typed."""

    def readline(self, size: int = -1, /) -> str:
        line = super().readline()
        if not line:
            raise KeyboardInterrupt
        return line


class Chat:
    """One run of the chat with what it has written."""

    def __init__(
        self,
        server: httpx.BaseTransport,
        typed: str | TextIO,
        *,
        is_terminal: bool = True,
        url: str = URL,
        **options: Any,
    ) -> None:
        kind = Terminal if is_terminal else io.StringIO
        stdin = kind(typed) if isinstance(typed, str) else typed
        stdout, stderr = kind(), kind()
        self.exit_code = run_chat(url, stdin=stdin, stdout=stdout, stderr=stderr, transport=server, **options)
        self.shown = stdout.getvalue()
        self.complaints = stderr.getvalue()


def pipe(server: FakeServer, typed: str | TextIO, **options: Any) -> Chat:
    return Chat(server, typed, is_terminal=False, **options)
