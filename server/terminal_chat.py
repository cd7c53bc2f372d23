"""A conversation in the terminal with a running server, over its HTTP interface."""

import importlib
import json
import os
import re
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, TextIO

import httpx

_FAINT, _PLAIN = "\x1b[2m", "\x1b[0m"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # C0 but tab and line feed, DEL, C1
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_CONNECT_TIMEOUT_SECONDS = 5.0
_LOOKUP_TIMEOUT_SECONDS = 15.0

HELP = """\
/system TEXT  set the system message; without TEXT, remove it
/reset        forget the conversation; the system message stays
/help         show this
/exit         leave, as do Ctrl-D and, at the prompt, Ctrl-C
Ctrl-C during an answer stops the answer."""


class ChatFailed(Exception):
    """There is no answer; the text says why, in a line for people to read."""


def run_chat(
    base_url: str,
    *,
    model: str | None = None,
    system: str | None = None,
    api_key: str | None = None,
    stdin: TextIO,
    stdout: TextIO,
    stderr: TextIO,
    transport: httpx.BaseTransport | None = None,
) -> int:
    """Talk with the server at `base_url` until the input ends; return the exit code.

    0: the input ended or its user left; 1: the server cannot be reached at the start, or, away from a terminal, an
    answer failed; 130: interrupted away from a terminal. Without `model` it is the first one the server lists.
    """
    try:
        with closing(ChatClient(base_url, api_key, transport)) as client:
            listed = client.first_model(is_needed=model is None)
            return TerminalChat(client, model or listed, system, stdin, stdout, stderr).run()
    except ChatFailed as error:
        stderr.write(printable(f"{error}\n", stderr.encoding))
        return 1
    except KeyboardInterrupt:  # while the server was looked for
        return 130


@dataclass
class AnswerLog:
    """What became of one answer, filled in while it streams."""

    text: str = ""
    finish_reason: str | None = None
    num_tokens: int | None = None  # as the server counts them; known at the end
    first_at_seconds: float | None = None
    last_at_seconds: float = 0.0

    def summary(self) -> str:
        """Return a line about its length and speed, or nothing if the server has not counted.

        The speed is that of decoding: the first token and the wait for it are left out.
        """
        if self.num_tokens is None:
            return ""
        parts = [f"{self.num_tokens} token{'' if self.num_tokens == 1 else 's'}"]
        seconds = 0.0 if self.first_at_seconds is None else self.last_at_seconds - self.first_at_seconds
        if self.num_tokens > 1 and seconds > 0:
            parts.append(f"{(self.num_tokens - 1) / seconds:.1f} tokens/s")
        if self.finish_reason == "length":
            parts.append("cut off at the limit of tokens")
        return ", ".join(parts)


class ChatClient:
    """The two requests a chat needs, as methods that raise ChatFailed."""

    def __init__(self, base_url: str, api_key: str | None, transport: httpx.BaseTransport | None = None) -> None:
        self._url = (base_url if "://" in base_url else f"http://{base_url}").rstrip("/").removesuffix("/v1")
        try:
            self._http = httpx.Client(
                base_url=self._url,
                headers={"authorization": f"Bearer {api_key}"} if api_key else None,
                # No read timeout: a prompt may be long and a machine slow. Whoever waits can press Ctrl-C.
                timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_SECONDS),
                transport=transport,
                trust_env=httpx.URL(self._url).host not in _LOOPBACK,  # no proxy leads to this machine
            )
        except (httpx.InvalidURL, ValueError) as error:  # ValueError: a key that no header can hold
            raise ChatFailed(f"Cannot ask {self._url}: {error}. Check the address and the key.") from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def first_model(self, *, is_needed: bool = True) -> str:
        """Return the name of the first model the server lists; if it is not needed, any answer will do."""
        try:
            response = self._http.get("/v1/models", timeout=_LOOKUP_TIMEOUT_SECONDS)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        if not is_needed:
            return ""
        _raise_for_status(response)
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise ChatFailed(f"{self._url} lists no model. Check the address, or name the model.") from None

    def answer(self, model: str, messages: list[dict[str, str]], log: AnswerLog) -> Generator[str, None, None]:
        """Yield the answer's text as it arrives, and keep the log; closing the generator makes the server stop."""
        body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if not response.is_success:
                    response.read()
                _raise_for_status(response)
                for event in events(response.iter_bytes()):
                    if event == "[DONE]":
                        return
                    yield _read_chunk(event, log)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self._unreachable(error) from error
        except httpx.HTTPError as error:
            raise ChatFailed(f"The connection broke: {str(error) or type(error).__name__}. Ask again.") from error
        raise ChatFailed("The server ended the answer before it was complete. Ask again.")

    def _unreachable(self, error: Exception) -> ChatFailed:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return ChatFailed(f"No server answers at {self._url}. Start one with `caravan serve`.")
        return ChatFailed(f"{self._url} gives no answer: {str(error) or type(error).__name__}. Check the address.")


class TerminalChat:
    """One session: what was said so far, and where people read and type."""

    def __init__(
        self, client: ChatClient, model: str, system: str | None, stdin: TextIO, stdout: TextIO, stderr: TextIO
    ) -> None:
        self._client = client
        self._model = model
        self._system = system
        self._stdin = stdin
        self._stdout = stdout
        self._stderr = stderr
        self._turns: list[dict[str, str]] = []
        self._takes_commands = stdin.isatty()
        self._is_decorated = stdin.isatty() and stdout.isatty()

    def run(self) -> int:
        """Talk until the input ends; return the exit code.

        At a terminal a failed answer is reported and the session goes on. Otherwise each line is a prompt, whatever
        it begins with, and the first failure ends the session.
        """
        if self._is_decorated:
            self._show(f"Talking to {self._model}. /help lists the commands.\n")
            if self._stdin is sys.stdin:
                with suppress(ImportError):
                    importlib.import_module("readline")  # from now on input() lets a line be edited
        try:
            while (line := self._read_line()) is not None:
                if self._takes_commands and line.startswith("/"):
                    if not self._obey(line):
                        return 0
                elif line and not self._ask(line) and not self._takes_commands:
                    return 1
        except KeyboardInterrupt:
            self._end_line()
            return 0 if self._takes_commands else 130
        except UnicodeDecodeError as error:
            self._complain(f"The input is not {error.encoding}: {error.reason}. Convert it first.")
            return 1
        self._end_line()
        return 0

    def _read_line(self) -> str | None:
        """Return the next line without the space around it, or None at the end of the input."""
        prompt = "> " if self._is_decorated else ""
        if prompt and self._stdin is sys.stdin and self._stdout is sys.stdout:
            try:
                return _well_formed(input(prompt)).strip()
            except EOFError:
                return None
        self._show(prompt)
        line = self._stdin.readline()
        return _well_formed(line).strip() if line else None

    def _obey(self, line: str) -> bool:
        """Do what a command says; return whether the session goes on."""
        command, _, argument = line.partition(" ")
        if command == "/exit":
            return False
        if command == "/reset":
            self._turns.clear()
            self._show("The conversation starts anew.\n")
        elif command == "/system":
            self._system = argument.strip() or None
            self._show(f"The system message is {'set' if self._system else 'removed'}.\n")
        elif command == "/help":
            self._show(f"{HELP}\n")
        else:
            self._complain(f"There is no command {command}. /help lists them.")
        return True

    def _ask(self, prompt: str) -> bool:
        """Show the answer to a prompt and keep both; return whether nothing failed.

        An answer that was stopped is kept as far as it came. A prompt that got none is forgotten.
        """
        opening = [{"role": "system", "content": self._system}] if self._system else []
        question = {"role": "user", "content": prompt}
        log = AnswerLog()
        note = "stopped"
        try:
            with closing(self._client.answer(self._model, [*opening, *self._turns, question], log)) as pieces:
                for piece in pieces:
                    self._show(piece)
            note = log.summary()
        except ChatFailed as error:
            self._show("\n" if log.text else "")
            self._complain(str(error))
            return False
        except KeyboardInterrupt:
            if not self._takes_commands:
                raise
        if log.text:
            self._turns += [question, {"role": "assistant", "content": log.text}]
        self._show("\n")
        if self._is_decorated and note:
            is_plain = "NO_COLOR" in os.environ
            self._stdout.write(f"{note}\n" if is_plain else f"{_FAINT}{note}{_PLAIN}\n")
        return True

    def _end_line(self) -> None:
        self._show("\n" if self._is_decorated else "")

    def _show(self, text: str) -> None:
        self._stdout.write(printable(text, self._stdout.encoding))
        self._stdout.flush()

    def _complain(self, text: str) -> None:
        self._stderr.write(printable(f"{text}\n", self._stderr.encoding))
        self._stderr.flush()


def printable(text: str, encoding: str | None) -> str:
    """Return `text` as a terminal may have it: no control characters but tab and line feed, none it cannot encode."""
    encoding = encoding or "utf-8"
    return _CONTROL.sub("", text).encode(encoding, "replace").decode(encoding)


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the payload of each server-sent event; comments and fields other than `data` are dropped.

    An event that the end cuts off is none. Source: WHATWG HTML, 9.2.6, without lines that end in a lone CR.
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


def _read_chunk(event: str, log: AnswerLog) -> str:
    """Return the text of one chunk, with all it says written to the log."""
    try:
        chunk: dict[str, Any] = json.loads(event)
        if chunk.get("error"):
            raise ChatFailed(_error_message(chunk) or "The server gave up on the answer. Its log may say why.")
        if chunk.get("usage"):
            log.num_tokens = int(chunk["usage"]["completion_tokens"])
        if not chunk["choices"]:
            return ""
        log.last_at_seconds = time.monotonic()
        if log.first_at_seconds is None:
            log.first_at_seconds = log.last_at_seconds
        choice = chunk["choices"][0]
        log.finish_reason = choice.get("finish_reason")
        text = _well_formed(choice["delta"].get("content") or "")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ChatFailed("The server sent what is no part of a chat answer. Check the address.") from error
    log.text += text
    return text


def _raise_for_status(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        message = _error_message(response.json())
    except ValueError:
        message = ""
    raise ChatFailed(message or f"The server answered {response.status_code} {response.reason_phrase}.")


def _error_message(body: Any) -> str:
    """Return `error.message` of a body, or nothing if it has none."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return error if isinstance(error, str) else ""
    remark = " /reset starts a new conversation." if error.get("code") == "context_length_exceeded" else ""
    return f"{error.get('message') or ''}{remark}".strip()


def _well_formed(text: str) -> str:
    """Return `text` with each lone surrogate replaced: JSON can spell them, UTF-8 cannot."""
    return text.encode(errors="replace").decode()
