"""ChatTemplate: the model's own way of writing a conversation as one prompt."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from server import template_worker
from server.special_token_guard import Json, SpecialTokenGuard, all_strings, unused_characters

_MAX_CHARACTERS = 16 * 2**20  # of a rendered prompt
_MEMORY_LIMIT_BYTES = 2**30  # address space of the worker

logger = logging.getLogger(__name__)


class TemplateRefused(ValueError):
    """The template called raise_exception; its message is meant for the caller."""


class TemplateFailed(ValueError):
    """The template cannot be rendered for these messages, or not within its limits; the text is for the log."""


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt to encode with `parse_special=True, guard=guard`."""

    text: str
    guard: str


class ChatTemplate:
    """A Jinja chat template, rendered by a worker process.

    The template comes with the weights, from someone else, and the messages come from anyone. jinja2's sandbox keeps a
    template from reaching out, but not from running on: two nested `range(99999)`, `'x' * 10**10` or `10**(10**10)`
    never end, the last two inside one C call that no thread can interrupt. A process can be ended and its memory
    bounded. The price is about 10 MB and a fraction of a millisecond for each prompt.

    Raises ValueError if `source` is not a template.
    """

    def __init__(self, source: str, bos_token: str, eos_token: str, *, time_limit_seconds: float = 2.0) -> None:
        self._source = source
        self._special = {"bos_token": bos_token, "eos_token": eos_token}
        self._time_limit_seconds = time_limit_seconds
        self._lock = threading.Lock()
        self._worker = self._start_worker()

    def render(
        self,
        messages: list[dict[str, Json]],
        *,
        special_tokens: Collection[str],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> RenderedPrompt:
        """Return the prompt for `messages`, ready for the tokenizer; blocks for at most the time limit.

        With `continue_final_message` the prompt ends where the content of the last message ends.
        Raises TemplateRefused or TemplateFailed, and a plain ValueError if the messages leave the guard no character.
        """
        guard, mark = unused_characters([self._source, *special_tokens, *all_strings(list(messages))], 2)
        guarded = SpecialTokenGuard(special_tokens, guard).apply(list(messages))
        if continue_final_message:
            _mark_end(guarded, mark)
        text = self._ask(
            {"messages": guarded, "tools": None, "add_generation_prompt": add_generation_prompt, **self._special}
        )
        return RenderedPrompt(_cut_at_mark(text, mark) if continue_final_message else text, guard)

    def close(self) -> None:
        """End the worker; happens by itself when the template is no longer used."""
        with self._lock:
            self._worker.close()

    def _ask(self, question: dict[str, Json]) -> str:
        with self._lock:
            answer = self._worker.ask(question)
            if answer is None:
                status = self._worker.close()
                self._worker = self._start_worker()
                took_too_long = status == -signal.SIGALRM
                limit = f"{self._time_limit_seconds} seconds" if took_too_long else f"{_MEMORY_LIMIT_BYTES} bytes"
                raise TemplateFailed(f"the worker ended with status {status}; the template may take {limit}")
        if "raised" in answer:
            raise TemplateRefused(answer["raised"])
        if "failed" in answer:
            raise TemplateFailed(answer["failed"])
        return answer["text"]

    def _start_worker(self) -> "_Worker":
        worker = _Worker(self._time_limit_seconds)
        answer = worker.ask({"source": self._source, "max_characters": _MAX_CHARACTERS})
        if answer is None or "failed" in answer:
            worker.close()
            reason = "it takes too much time or memory" if answer is None else answer["failed"]
            raise ValueError(f"The model's chat template cannot be used: {reason}.")
        return worker


class _Worker:
    """The process that runs `template_worker`; asked one question at a time."""

    def __init__(self, time_limit_seconds: float) -> None:
        # -I and the short environment: a template that escapes the sandbox finds no secrets and none of our modules.
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                str(Path(template_worker.__file__)),
                str(time_limit_seconds),
                str(_MEMORY_LIMIT_BYTES),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in ("TZ", "LD_LIBRARY_PATH") if name in os.environ},
            start_new_session=True,  # Ctrl-C in the terminal is for the server
        )
        self._end = weakref.finalize(self, _end_process, self._process)

    def ask(self, question: dict[str, Json]) -> dict[str, str] | None:
        """Return the answer, or None if the worker ended instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):  # ValueError: closed before
            return None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            return None
        answer: dict[str, str] = json.loads(line)
        return answer

    def close(self) -> int:
        """End the process and return its exit status."""
        self._end()
        return self._process.returncode


def _end_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:
            logger.debug("The worker ended before it read everything.")


def _mark_end(messages: Json, mark: str) -> None:
    """Append the mark and a space to the last message: whether the space survives tells if the template trims."""
    assert isinstance(messages, list)
    final = messages[-1]
    assert isinstance(final, dict)
    final["content"] = f"{final['content']}{mark} "


def _cut_at_mark(text: str, mark: str) -> str:
    end = text.rfind(mark)
    if end < 0:
        raise TemplateFailed("the template leaves the content of the final message out")
    is_trimmed = text[end + 1 : end + 2] != " "
    return text[:end].rstrip() if is_trimmed else text[:end]
