"""ChatClient: the requests of a chat, and the streamed response."""

import json
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx

from caravan.cli.conversation import AnswerOptions, Message

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_CONNECT_TIMEOUT_SECONDS = 5.0
_LOOKUP_TIMEOUT_SECONDS = 15.0


class ChatFailed(Exception):
    """There is no response; the text is one line that says why."""


class KeyRefused(ChatFailed):
    """The server refuses the API key or needs one, or no header can hold it."""


class Piece(NamedTuple):
    """A part of a response that is not empty."""

    text: str
    is_thought: bool


@dataclass
class AnswerLog:
    """The text, length and speed of one response, filled in while it streams."""

    text: str = ""  # without the thought
    finish_reason: str | None = None
    num_tokens: int | None = None  # as the server counts them; known at the end
    first_at_seconds: float | None = None
    last_at_seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)  # of the server, about the request

    def summary(self) -> str:
        """Return a line with the length and speed of the response; empty if the server sent no token count.

        The speed is that of decoding: it excludes the first token and the time before it.
        """
        if self.num_tokens is None:
            return ""
        parts = [f"{self.num_tokens} token{'' if self.num_tokens == 1 else 's'}"]
        seconds = 0.0 if self.first_at_seconds is None else self.last_at_seconds - self.first_at_seconds
        if self.num_tokens > 1 and seconds > 0:
            parts.append(f"{(self.num_tokens - 1) / seconds:.1f} tokens/s")
        if self.finish_reason == "length":
            parts.append("cut off at the token limit")
        return ", ".join(parts)


class ChatClient:
    """The two requests a chat needs, as methods that raise ChatFailed."""

    def __init__(self, base_url: str, api_key: str | None, transport: httpx.BaseTransport | None = None) -> None:
        self._url = (base_url if "://" in base_url else f"http://{base_url}").rstrip("/").removesuffix("/v1")
        try:
            self._http = httpx.Client(
                base_url=self._url,
                headers={"authorization": f"Bearer {api_key}"} if api_key else None,
                # No read timeout: a prompt may be long and a machine slow. Ctrl-C ends the wait.
                timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_SECONDS),
                transport=transport,
                trust_env=httpx.URL(self._url).host not in _LOOPBACK,  # no proxy leads to this machine
            )
        except (httpx.InvalidURL, ValueError) as error:  # ValueError: a key that no header can hold
            raise KeyRefused(
                f"Cannot send requests to {self._url}: {error}. Check the address and the API key."
            ) from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def first_model(self, *, is_needed: bool = True) -> str:
        """Return the name of the first listed model; if it is not needed, only check that the server responds."""
        response = self._listing()
        if not is_needed:
            return ""
        return self._names(response)[0]

    def names(self) -> list[str]:
        """Return the names of the listed models, at least one; raises KeyRefused for status 401 and 403."""
        return self._names(self._listing())

    def _listing(self) -> httpx.Response:
        try:
            return self._http.get("/v1/models", timeout=_LOOKUP_TIMEOUT_SECONDS)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error

    def _names(self, response: httpx.Response) -> list[str]:
        _raise_for_status(response)
        try:
            names = [str(one["id"]) for one in response.json()["data"]]
        except (ValueError, LookupError, TypeError):
            names = []
        if not names:
            raise ChatFailed(f"{self._url} lists no model. Check the address, or name the model.")
        return names

    def answer(
        self, model: str, messages: list[Message], options: AnswerOptions, log: AnswerLog
    ) -> Generator[Piece, None, None]:
        """Yield the response as it arrives and update the log; closing the generator aborts the request."""
        body: dict[str, Any] = {"model": model, "messages": messages} | options.fields()
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if not response.is_success:
                    response.read()
                _raise_for_status(response)
                for event in events(response.iter_bytes()):
                    if event == "[DONE]":
                        return
                    yield from _read_chunk(event, log)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self._unreachable(error) from error
        except httpx.HTTPError as error:
            raise ChatFailed(
                f"The connection was lost: {str(error) or type(error).__name__}. Send the message again."
            ) from error
        raise ChatFailed("The server ended the response before it was complete. Send the message again.")

    def _unreachable(self, error: Exception) -> ChatFailed:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return ChatFailed(f"No server answers at {self._url}. Start one with `caravan serve`.")
        return ChatFailed(f"{self._url} does not respond: {str(error) or type(error).__name__}. Check the address.")


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the payload of each server-sent event; comments and fields other than `data` are dropped.

    An incomplete event at the end is dropped. Source: WHATWG HTML, 9.2.6, without lines that end in a lone CR.
    """
    pending = b""
    payload: list[str] = []
    for chunk in chunks:
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r").decode(errors="replace")
            if text.startswith("data:"):
                payload.append(text.removeprefix("data:").removeprefix(" "))
            elif not text and payload:
                yield "\n".join(payload)
                payload.clear()


def _read_chunk(event: str, log: AnswerLog) -> list[Piece]:
    """Return the thought and the text of one chunk, and update the log from its other fields."""
    try:
        chunk: dict[str, Any] = json.loads(event)
        if chunk.get("error"):
            raise ChatFailed(error_message(chunk) or "The server failed to complete the response. Its log may say why.")
        if chunk.get("usage"):
            log.num_tokens = int(chunk["usage"]["completion_tokens"])
        log.warnings += [well_formed(str(warning)) for warning in chunk.get("warnings") or []]
        if not chunk["choices"]:
            return []
        log.last_at_seconds = time.monotonic()
        if log.first_at_seconds is None:
            log.first_at_seconds = log.last_at_seconds
        choice = chunk["choices"][0]
        log.finish_reason = choice.get("finish_reason")
        delta = choice["delta"]
        thought = well_formed(delta.get("reasoning") or delta.get("reasoning_content") or "")
        text = well_formed(delta.get("content") or "")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ChatFailed("The server sent an invalid chat response. Check the address.") from error
    log.text += text
    return [piece for piece in (Piece(thought, is_thought=True), Piece(text, is_thought=False)) if piece.text]


def _raise_for_status(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        message = error_message(response.json())
    except ValueError:
        message = ""
    failure = KeyRefused if response.status_code in (401, 403) else ChatFailed
    raise failure(message or f"The server returned status {response.status_code} {response.reason_phrase}.")


def error_message(body: Any) -> str:
    """Return `error.message` of a body, empty if it has none."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return error if isinstance(error, str) else ""
    remark = " /reset starts a new conversation." if error.get("code") == "context_length_exceeded" else ""
    return f"{error.get('message') or ''}{remark}".strip()


def well_formed(text: str) -> str:
    """Return `text` with each lone surrogate replaced: JSON can contain them, UTF-8 cannot."""
    return text.encode(errors="replace").decode()
