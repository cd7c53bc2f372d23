"""CallReader: a model's text as it comes, told apart into content and tool calls."""

import json
import re
from dataclasses import dataclass, field

from server.tools.call_format import CallFormat

_PYTHON_TAG = "<|python_tag|>"  # Llama 3 may write it before a call
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_BEGINNING = re.compile(
    r'\s*(?:\{\s*(?:"(?:n(?:a(?:m(?:e(?:".*)?)?)?)?)?)?)?', re.DOTALL
)  # of a call, as far as it came
_AFTER = re.compile(r"[\s},;\]]*")
_CLOSING = "</tool_call>"


@dataclass
class CallPart:
    """What became known of one call: its name when it begins, then its arguments piece by piece."""

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass
class AnswerPart:
    """What became known of an answer at once: content, and calls behind it."""

    content: str = ""
    calls: list[CallPart] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.content or self.calls)


class CallReader:
    """Reads one answer. However its text is cut into pieces, the parts joined are the same.

    What turns out to be no call is content. Only the first call is read unless several are allowed; what follows it
    is dropped then.
    """

    def __init__(self, call_format: CallFormat, *, allows_several: bool = True) -> None:
        self.num_calls = 0
        self._format = call_format
        self._marker = "".join(call_format.opening.split()[:1])
        self._has_content = False
        self._allows_several = allows_several
        self._text = ""  # not yet told apart
        self._parts: list[AnswerPart] = []  # of the present piece, in the order of the text
        self._read = self._read_start if call_format.is_whole_answer else self._read_content
        self._opened = ""  # what stood before a call that has no name yet
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def push(self, text: str) -> list[AnswerPart]:
        """Return what the next piece of text makes known, in the order of the text."""
        self._text += text
        self._parts = []
        while self._read():
            pass
        return self._parts

    def finish(self) -> list[AnswerPart]:
        """Return what is left when the answer has ended."""
        part = AnswerPart()
        if self._read in (self._read_content, self._read_head, self._read_start):
            part.content = self._opened + self._text
        elif self._read == self._read_arguments and self._text:
            part.calls.append(CallPart(self.num_calls - 1, arguments=self._text))
        self._text = self._opened = ""
        return [part] if part else []

    @property
    def is_in_call(self) -> bool:
        """The arguments of a call have begun and not ended."""
        return self._read == self._read_arguments

    def _show(self, text: str) -> None:
        """Add content; behind a call it is a part of its own."""
        if not text:
            return
        if not self._parts or self._parts[-1].calls:
            self._parts.append(AnswerPart())
        self._parts[-1].content += text

    def _add_call(self, call: CallPart) -> None:
        if not self._parts:
            self._parts.append(AnswerPart())
        self._parts[-1].calls.append(call)

    # Each of the following takes what it can from the text and returns whether there is more to do at once.

    def _read_start(self) -> bool:
        text = self._text.lstrip()
        if text.startswith(_PYTHON_TAG):
            self._opened = self._text[: len(self._text) - len(text) + len(_PYTHON_TAG)]
            self._text, self._read = text[len(_PYTHON_TAG) :], self._read_head
            return True
        if _BEGINNING.fullmatch(text) or _PYTHON_TAG.startswith(text):
            if _HEAD.match(text):
                self._read = self._read_head
                return True
            return False
        self._read = self._read_rest
        return True

    def _read_rest(self) -> bool:
        self._show(self._text)
        self._text = ""
        return False

    def _read_content(self) -> bool:
        start = self._text.find(self._marker)
        if start >= 0:
            self._add_content(self._text[:start].rstrip() if self.num_calls else self._text[:start])
            self._opened = self._marker
            self._text = self._text[start + len(self._marker) :]
            self._read = self._read_head
            return True
        num_held = max(n for n in range(len(self._marker)) if self._text.endswith(self._marker[:n]))
        before = self._text[: len(self._text) - num_held]
        if before.strip() or (self._has_content and not self.num_calls):
            self._add_content(before)
            self._text = self._text[len(before) :]
        return False

    def _add_content(self, text: str) -> None:
        """White space alone before a call, or between two, is not content."""
        if text.strip() or self._has_content:
            self._show(text)
            self._has_content = True

    def _read_head(self) -> bool:
        text = self._text.lstrip()
        if text.startswith("["):  # of a list of calls
            self._opened += self._text[: len(self._text) - len(text) + 1]
            self._text = text[1:]
            return True
        head = _HEAD.match(self._text)
        if head is None:
            return False
        try:
            name = json.loads(head[1])
        except ValueError:
            return False
        self._add_call(CallPart(self.num_calls, name))
        self.num_calls += 1
        self._opened, self._text, self._read = "", self._text[head.end() :], self._read_arguments
        return True

    def _read_arguments(self) -> bool:
        for position, character in enumerate(self._text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_in_string:
                self._is_escaped = character == "\\"
                self._is_in_string = character != '"'
            elif character == '"':
                self._is_in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._add_arguments(self._text[: position + 1])
                    self._text = self._text[position + 1 :]
                    self._read = self._read_after if self._allows_several else self._drop
                    return True
        self._add_arguments(self._text)
        self._text = ""
        return False

    def _add_arguments(self, text: str) -> None:
        if not text:
            return
        calls = self._parts[-1].calls if self._parts else []
        if not calls:
            self._add_call(CallPart(self.num_calls - 1))
        self._parts[-1].calls[-1].arguments += text

    def _read_after(self) -> bool:
        """Pass what closes a call; then another one begins, or content."""
        after = _AFTER.match(self._text)
        assert after is not None
        self._text = self._text[after.end() :]
        if self._text.startswith(_CLOSING):
            self._text = self._text[len(_CLOSING) :]
            return True
        if not self._text or _CLOSING.startswith(self._text):
            return False
        is_next = self._text.startswith("{") and not self._format.opening.startswith("<")
        self._read = self._read_head if is_next else self._read_rest if not self._marker else self._read_content
        return True

    def _drop(self) -> bool:
        self._text = ""
        return False
