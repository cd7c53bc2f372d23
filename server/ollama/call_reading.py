"""CallReading: content and whole tool calls, read from a text while it arrives."""

from typing import Literal

from caravan.server.ollama.answers import AnswerCall, AnswerFunction
from caravan.server.openai.protocol.tools import parsed_arguments
from caravan.server.openai.tool_calls.call_format import CallFormat
from caravan.server.openai.tool_calls.tool_call_parser import ToolCallParser


class CallReading:
    """Reads one response. A call is returned when it is complete, since its arguments are an object.

    A call whose arguments are not an object, such as one that was cut off, is content as the model wrote it.
    """

    def __init__(self, call_format: CallFormat) -> None:
        self._format = call_format
        self._parser = ToolCallParser(call_format)
        self._name: str | None = None  # of the open call
        self._arguments = ""

    def push(self, text: str, finish_reason: Literal["stop", "length"] | None) -> tuple[str, list[AnswerCall]]:
        """Return the content and the complete calls after the next text; the last one has a finish reason."""
        parts = self._parser.push(text)
        if finish_reason is not None:
            parts += self._parser.finish(is_cut_off=finish_reason == "length")
        content = ""
        calls: list[AnswerCall] = []
        for part in parts:
            if part.content and self._name is not None:  # text after a call, which has ended
                content += self._close(calls)
            content += part.content
            for call in part.calls:
                if call.name is not None:
                    content += self._close(calls)
                    self._name = call.name
                self._arguments += call.arguments
        if finish_reason is not None or not self._parser.is_in_call:
            content += self._close(calls)
        return content, calls

    def _close(self, calls: list[AnswerCall]) -> str:
        """Append the open call, if there is one, to `calls`; return its text if it is not one."""
        if self._name is None:
            return ""
        name, text = self._name, self._arguments
        self._name, self._arguments = None, ""
        arguments = parsed_arguments(text)
        if arguments is None:
            return self._format.written([(name, text)])
        calls.append(AnswerCall(id=self._format.new_call_id(), function=AnswerFunction(name=name, arguments=arguments)))
        return ""
