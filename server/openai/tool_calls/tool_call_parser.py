"""ToolCallParser: splits a model's text into content and tool calls while it arrives."""

import re
from dataclasses import dataclass, field

from caravan.server.openai.tool_calls.call_format import TOOL_CALLS, CallFormat
from caravan.server.openai.tool_calls.json_text import (
    NotJson,
    captured,
    decoded,
    decoded_beginning,
    pass_character,
    pass_value,
    read_string,
    read_word,
    text_of_object,
)
from caravan.server.openai.tool_calls.text_source import CutOff, Steps, TextSource

_ARGUMENTS = ("arguments", "parameters")
_BARE_NAME = re.compile(r'[^\s\[\]{}"<>]+')
_ANYTHING = re.compile(r".+", re.DOTALL)
_CALL_ID = re.compile(r"[^\s\[\]{}]+")


@dataclass
class CallPart:
    """The next part of one call: its name when it begins, then more of its arguments."""

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass
class ResponsePart:
    """The next part of a response: content, and the calls after it."""

    content: str = ""
    calls: list[CallPart] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.content or self.calls)


@dataclass
class _Call:
    """The call that is being read."""

    name: str | None = None
    arguments: str = ""  # as far as they were read, if they were read before the call could begin
    has_begun: bool = False  # it is part of the response
    is_complete: bool = False  # its arguments are


class ToolCallParser:
    """Parses one response. The joined parts do not depend on how its text is split into chunks.

    A mark that no call follows is content, and so is the text after it. Text after the first call is dropped unless
    several calls are allowed. White space alone before the first call, or around later ones, is dropped.
    """

    def __init__(self, call_format: CallFormat, *, allows_several: bool = True, is_forced: bool = False) -> None:
        """`is_forced`: a grammar allows only calls, so the beginning of one is never content."""
        self.num_calls = 0
        self.is_in_call = False  # the latest call has begun, and its arguments are not complete
        self._format = call_format
        self._before_mark = re.compile(f"[^{re.escape(call_format.mark[0])}]+")
        self._allows_several = allows_several
        self._is_forced = is_forced
        self._is_cut_off = False
        self._source = TextSource()
        self._parts: list[ResponsePart] = []  # of the current chunk, in the order of the text
        self._space: list[str] = []  # white space that is content if content follows
        self._has_content = False
        self._follows_call = False  # no content came after the latest call
        self._steps = self._read()

    def push(self, text: str) -> list[ResponsePart]:
        """Add the next chunk of text; return the new parts, in the order of the text."""
        self._source.feed(text)
        return self._advance()

    def finish(self, *, is_cut_off: bool = False) -> list[ResponsePart]:
        """End the text; return the remaining parts. `is_cut_off`: the model had not finished it."""
        self._is_cut_off = is_cut_off
        self._source.end()
        return self._advance()

    def _advance(self) -> list[ResponsePart]:
        self._parts = []
        next(self._steps, None)
        self._source.flush_capture()
        return self._parts

    def _read(self) -> Steps[None]:
        if self._format.is_whole_answer:
            self._source.keep()
            yield from self._read_calls("")
        while (yield from self._read_content()):
            yield from self._read_calls(self._format.mark)
        self._add_content("".join(self._space))

    def _read_content(self) -> Steps[bool]:
        """Show the text before the next mark and pass the mark; return False at the end of the text."""
        source, mark = self._source, self._format.mark
        source.release()
        while character := (yield from source.peek()):
            if character != mark[0]:
                self._show(source.take(self._before_mark))
                continue
            source.keep()
            length = yield from source.match(mark)
            if length == len(mark):
                return True
            source.release()
            is_last = not (yield from source.peek())
            if not (is_last and self._is_forced):
                self._show(mark[:length])  # the mark's first character does not occur in it again
        return False

    def _read_calls(self, mark: str) -> Steps[None]:
        """Read the calls after a mark, or those that begin a text; the text since the mark is kept."""
        source, call, is_marked = self._source, _Call(), bool(mark)
        try:
            character = yield from source.skip_space()
            if character == "[":
                source.advance()
                character = yield from source.skip_space()
            if character != "{" and mark == TOOL_CALLS:
                yield from self._read_named_call(call)
            else:
                yield from self._read_call(call, is_marked)
            is_marked, mark = True, ""
            while (yield from self._reaches_next()):
                call = _Call()
                yield from self._read_call(call, is_marked)
        except NotJson:
            self._give_up(call, mark)
        except CutOff:
            if call.is_complete and call.name is not None:
                self._finish(call)
            elif not (self._is_forced or (is_marked and self._is_cut_off)):
                self._give_up(call, mark)
            elif call.name is not None and not call.has_begun:
                self._begin(call)
                self._add_arguments(call.arguments)

    def _reaches_next(self) -> Steps[bool]:
        """Pass the text that ends a call or separates two; return whether another call begins without its own mark."""
        source, closing = self._source, self._format.closing_mark
        while not self._allows_several:  # the rest is dropped
            yield from source.take_all(_ANYTHING)
        while (character := (yield from source.skip_space())) in ",;]}":
            source.advance()
        source.keep()
        if closing and character == closing[0]:
            length = yield from source.match(closing)
            if length < len(closing):
                yield from source.need()
                source.rewind()
        return character == "{"

    def _read_call(self, call: _Call, is_marked: bool) -> Steps[None]:
        try:
            yield from self._read_object(call)
        except NotJson:
            if not (call.has_begun and call.is_complete):
                raise
        if call.name is None or not (call.is_complete or is_marked):
            raise NotJson
        self._finish(call)

    def _read_object(self, call: _Call, *, is_inner: bool = False) -> Steps[None]:
        """Pass an object, and find the name and the arguments of a call in it, or in its `function`."""
        source = self._source
        yield from pass_character(source, "{")
        while (character := (yield from source.skip_space())) != "}":
            key = yield from read_string(source)
            yield from pass_character(source, ":")
            character = yield from source.skip_space()
            if key == "name" and call.name is None:
                call.name = yield from read_string(source)
                if not call.name:
                    raise NotJson
            elif key == "function" and character == "{" and call.name is None and not is_inner:
                yield from self._read_object(call, is_inner=True)
            elif key in _ARGUMENTS and not call.is_complete:
                yield from self._read_arguments(call)
            else:
                yield from pass_value(source)
            character = yield from source.skip_space()
            if character == ",":
                source.advance()
            elif character != "}":
                raise NotJson
        source.advance()

    def _read_arguments(self, call: _Call) -> Steps[None]:
        """Read arguments: an object, the text of an object as a string, or null."""
        source = self._source
        character = yield from source.skip_space()
        if character == "{" and call.name is not None:
            self._begin(call)
            with captured(source, self._add_arguments):
                yield from pass_value(source)
        elif character in '{"':
            raw: list[str] = []
            try:
                with captured(source, raw.append):
                    yield from pass_value(source)
            except CutOff:
                text = "".join(raw)
                call.arguments = text if character == "{" else decoded_beginning(text)
                raise
            text = "".join(raw)
            call.arguments = text if character == "{" else text_of_object(decoded(text))
        elif (yield from read_word(source)) == "null":
            call.arguments = "{}"
        else:
            raise NotJson
        call.is_complete = True
        if call.has_begun:
            self.is_in_call = False

    def _read_named_call(self, call: _Call) -> Steps[None]:
        """Read `name[ARGS]{...}` or `name[CALL_ID]id[ARGS]{...}`."""
        source = self._source
        name = yield from source.take_all(_BARE_NAME)
        yield from pass_character(source, "[")
        call.name = name or None
        if (yield from source.need()) == "C":
            yield from self._expect("CALL_ID]")
            yield from source.take_all(_CALL_ID)
            yield from pass_character(source, "[")
        yield from self._expect("ARGS]")
        if call.name is None:
            raise NotJson
        yield from self._read_arguments(call)
        self._finish(call)

    def _expect(self, text: str) -> Steps[None]:
        if (yield from self._source.match(text)) < len(text):
            yield from self._source.need()
            raise NotJson

    def _give_up(self, call: _Call, mark: str) -> None:
        """Continue after text that is not a call; a call that has begun stays in the response, incomplete."""
        if not call.has_begun:
            self._source.rewind(len(mark))
            self._show(mark)
            return
        # A string that was not closed may have hidden the mark of the next call.
        next_mark = self._source.kept.find(self._format.mark, len(mark))
        if next_mark >= 0:
            self._source.rewind(next_mark)

    def _begin(self, call: _Call) -> None:
        self._space.clear()
        call.has_begun = self.is_in_call = self._follows_call = True
        if not self._parts:
            self._parts.append(ResponsePart())
        self._parts[-1].calls.append(CallPart(self.num_calls, call.name))
        self.num_calls += 1

    def _finish(self, call: _Call) -> None:
        """Add a complete call to the parts, unless it has begun before."""
        if not call.has_begun:
            self._begin(call)
            self._add_arguments(call.arguments if call.is_complete else "{}")
        call.is_complete = True
        self.is_in_call = False
        self._source.release()

    def _add_arguments(self, text: str) -> None:
        if not text:
            return
        if not self._parts:
            self._parts.append(ResponsePart())
        if not self._parts[-1].calls:
            self._parts[-1].calls.append(CallPart(self.num_calls - 1))
        self._parts[-1].calls[-1].arguments += text

    def _show(self, text: str) -> None:
        """Add content, except white space that may stand beside a call."""
        if self._follows_call:
            text = text.lstrip()
        is_kept_whole = not self.num_calls and (self._has_content or text.strip())
        shown = len(text if is_kept_whole else text.rstrip())
        if shown:
            self._add_content("".join(self._space) + text[:shown])
            self._space.clear()
            self._has_content, self._follows_call = True, False
        self._space.append(text[shown:])

    def _add_content(self, text: str) -> None:
        """Add content; after a call it is a part of its own."""
        if not text:
            return
        if not self._parts or self._parts[-1].calls:
            self._parts.append(ResponsePart())
        self._parts[-1].content += text
