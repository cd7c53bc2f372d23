"""A conversation in the terminal with a server, over its HTTP interface."""

import importlib
import os
import re
import sys
from collections.abc import Iterable
from contextlib import closing, suppress
from typing import TYPE_CHECKING, TextIO

import httpx

from caravan.cli.chat_commands import WrongCommand, obey
from caravan.cli.client import AnswerLog, ChatClient, ChatFailed, Piece, well_formed
from caravan.cli.conversation import AnswerOptions, Conversation

if TYPE_CHECKING:
    from caravan.cli.markdown_view import MarkdownView

_FAINT, _PLAIN = "\x1b[2m", "\x1b[0m"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # C0 but tab and line feed, DEL, C1


def run_chat(
    base_url: str,
    *,
    model: str | None = None,
    system: str | None = None,
    options: AnswerOptions | None = None,
    is_rendered: bool = False,
    api_key: str | None = None,
    stdin: TextIO,
    stdout: TextIO,
    stderr: TextIO,
    transport: httpx.BaseTransport | None = None,
) -> int:
    """Chat with the server at `base_url` until the input ends; return the exit code.

    0: the input ended or the user left; 1: the server cannot be reached at the start, or a response failed and the
    input is not a terminal; 130: interrupted, and the input is not a terminal. The default `model` is the first one the
    server lists. Markdown in answers is shown as it is written, unless it `is_rendered`.
    """
    try:
        with closing(ChatClient(base_url, api_key, transport)) as client:
            listed = client.first_model(is_needed=model is None)
            conversation = Conversation(model or listed, system, options or AnswerOptions())
            return TerminalChat(client, conversation, stdin, stdout, stderr, is_rendered=is_rendered).run()
    except ChatFailed as error:
        stderr.write(printable(f"{error}\n", stderr.encoding))
        return 1
    except KeyboardInterrupt:  # while the server was looked for
        return 130


class TerminalChat:
    """One session: the conversation so far, and the streams for input and output."""

    def __init__(
        self,
        client: ChatClient,
        conversation: Conversation,
        stdin: TextIO,
        stdout: TextIO,
        stderr: TextIO,
        *,
        is_rendered: bool = False,
    ) -> None:
        self._client = client
        self._conversation = conversation
        self._stdin = stdin
        self._stdout = stdout
        self._stderr = stderr
        self._is_rendered = is_rendered
        self._shown_warnings: set[str] = set()
        self._takes_commands = stdin.isatty()
        self._is_decorated = stdin.isatty() and stdout.isatty()
        self._has_color = "NO_COLOR" not in os.environ

    def run(self) -> int:
        """Chat until the input ends; return the exit code.

        At a terminal a failed response is reported and the session continues. Otherwise every line is a prompt, never a
        command, and the first failure ends the session.
        """
        if self._is_decorated:
            self._show(f"Chatting with {self._conversation.model}. /help lists the commands.\n")
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
        try:
            reply = obey(line, self._conversation)
        except WrongCommand as error:
            self._complain(str(error))
            return True
        if reply.text:
            self._show(f"{reply.text}\n")
        if reply.question is not None:
            self._ask(reply.question, replaces_last=True)
        return not reply.is_over

    def _ask(self, question: str, *, replaces_last: bool = False) -> bool:
        """Show the response to a question and add both to the conversation; return whether the request succeeded.

        Of a stopped response the text so far is added. A question without a response is removed.
        """
        conversation = self._conversation
        log = AnswerLog()
        note = "stopped"
        try:
            messages = conversation.messages(question, without_last=replaces_last)
            answer = self._client.answer(conversation.model, messages, conversation.options, log)
            with closing(answer) as pieces:
                self._show_pieces(pieces)
            note = log.summary()
        except ChatFailed as error:
            self._show("\n" if log.text else "")
            self._complain(str(error))
            return False
        except KeyboardInterrupt:
            if not self._takes_commands:
                raise
        if log.text:
            if replaces_last:
                conversation.turns.pop()
            conversation.turns.append((question, log.text))
        self._show("" if self._is_rendered else "\n")
        if self._is_decorated and note:
            self._stdout.write(f"{_FAINT}{note}{_PLAIN}\n" if self._has_color else f"{note}\n")
        for warning in log.warnings:
            if warning not in self._shown_warnings:  # the next request has the same fields
                self._shown_warnings.add(warning)
                self._complain(warning)
        return True

    def _show_pieces(self, pieces: Iterable[Piece]) -> None:
        """Show a response: its thought at a terminal only, faint or after a mark, and then its text."""
        is_thought = False
        view = self._markdown_view() if self._is_rendered else None
        try:
            for piece in pieces:
                if piece.is_thought and not self._is_decorated:
                    continue
                if piece.is_thought != is_thought:
                    is_thought = piece.is_thought
                    self._stdout.write(self._thought_mark(begins=is_thought))
                if view is None or is_thought:
                    self._show(piece.text)
                else:
                    view.write(printable(piece.text, self._stdout.encoding))
        finally:
            if is_thought and self._has_color:
                self._stdout.write(_PLAIN)
            if view is not None:
                view.close()

    def _markdown_view(self) -> "MarkdownView":
        from rich.console import Console  # here: a pipe needs neither

        from caravan.cli.markdown_view import MarkdownView

        return MarkdownView(Console(file=self._stdout, markup=False, emoji=False, highlight=False))

    def _thought_mark(self, *, begins: bool) -> str:
        """Return what stands before a thought, or between it and the text."""
        if begins:
            return _FAINT if self._has_color else "Thought: "
        return f"{_PLAIN}\n\n" if self._has_color else "\n\n"

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
