"""A conversation in the terminal with a running server, over its HTTP interface."""

import importlib
import os
import re
import sys
from contextlib import closing, suppress
from typing import TextIO

import httpx

from caravan.cli.client import AnswerLog, ChatClient, ChatFailed, well_formed

_FAINT, _PLAIN = "\x1b[2m", "\x1b[0m"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # C0 but tab and line feed, DEL, C1

HELP = """\
/system TEXT  set the system message; without TEXT, remove it
/reset        start a new conversation; the system message stays
/help         show this list
/exit         leave, as do Ctrl-D and, at the prompt, Ctrl-C
Ctrl-C during a response stops the response."""


def run_chat(
    base_url: str,
    *,
    model: str | None = None,
    system: str | None = None,
    temperature: float = 0.2,
    api_key: str | None = None,
    stdin: TextIO,
    stdout: TextIO,
    stderr: TextIO,
    transport: httpx.BaseTransport | None = None,
) -> int:
    """Chat with the server at `base_url` until the input ends; return the exit code.

    0: the input ended or the user left; 1: the server cannot be reached at the start, or a response failed and the
    input is not a terminal; 130: interrupted, and the input is not a terminal. The default `model` is the first one the
    server lists.
    """
    try:
        with closing(ChatClient(base_url, api_key, transport)) as client:
            listed = client.first_model(is_needed=model is None)
            return TerminalChat(client, model or listed, system, temperature, stdin, stdout, stderr).run()
    except ChatFailed as error:
        stderr.write(printable(f"{error}\n", stderr.encoding))
        return 1
    except KeyboardInterrupt:  # while the server was looked for
        return 130


class TerminalChat:
    """One session: the messages so far, and the streams for input and output."""

    def __init__(
        self,
        client: ChatClient,
        model: str,
        system: str | None,
        temperature: float,
        stdin: TextIO,
        stdout: TextIO,
        stderr: TextIO,
    ) -> None:
        self._client = client
        self._model = model
        self._system = system
        self._temperature = temperature
        self._stdin = stdin
        self._stdout = stdout
        self._stderr = stderr
        self._turns: list[dict[str, str]] = []
        self._takes_commands = stdin.isatty()
        self._is_decorated = stdin.isatty() and stdout.isatty()

    def run(self) -> int:
        """Chat until the input ends; return the exit code.

        At a terminal a failed response is reported and the session continues. Otherwise every line is a prompt, never a
        command, and the first failure ends the session.
        """
        if self._is_decorated:
            self._show(f"Chatting with {self._model}. /help lists the commands.\n")
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
            self._complain(f"The input is not valid {error.encoding}: {error.reason}. Convert it first.")
            return 1
        self._end_line()
        return 0

    def _read_line(self) -> str | None:
        """Return the next line without surrounding white space, or None at the end of the input."""
        prompt = "> " if self._is_decorated else ""
        if prompt and self._stdin is sys.stdin and self._stdout is sys.stdout:
            try:
                return well_formed(input(prompt)).strip()
            except EOFError:
                return None
        self._show(prompt)
        line = self._stdin.readline()
        return well_formed(line).strip() if line else None

    def _obey(self, line: str) -> bool:
        """Run a command; return whether the session continues."""
        command, _, argument = line.partition(" ")
        if command == "/exit":
            return False
        if command == "/reset":
            self._turns.clear()
            self._show("Started a new conversation.\n")
        elif command == "/system":
            self._system = argument.strip() or None
            self._show(f"The system message is {'set' if self._system else 'removed'}.\n")
        elif command == "/help":
            self._show(f"{HELP}\n")
        else:
            self._complain(f"Unknown command {command}. /help lists the commands.")
        return True

    def _ask(self, prompt: str) -> bool:
        """Show the response to a prompt and add both to the messages; return whether the request succeeded.

        Of a stopped response the text so far is added. A prompt without a response is removed.
        """
        opening = [{"role": "system", "content": self._system}] if self._system else []
        question = {"role": "user", "content": prompt}
        log = AnswerLog()
        note = "stopped"
        try:
            messages = [*opening, *self._turns, question]
            with closing(self._client.answer(self._model, messages, self._temperature, log)) as pieces:
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
    """Return `text` without control characters except tab and line feed; `?` replaces what cannot be encoded."""
    encoding = encoding or "utf-8"
    return _CONTROL.sub("", text).encode(encoding, "replace").decode(encoding)
