"""Tool calls parsed from a text that comes in parts."""

from collections.abc import Sequence

from caravan.server.openai.tool_calls.call_format import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, CallFormat
from caravan.server.openai.tool_calls.tool_call_parser import ToolCallParser

FORMATS = [HERMES, MISTRAL, MISTRAL_NAMED, LLAMA]


Read = tuple[str, list[tuple[str, str]]]


def read(
    call_format: CallFormat,
    pieces: Sequence[str],
    *,
    allows_several: bool = True,
    is_forced: bool = False,
    is_cut_off: bool = False,
) -> Read:
    """Return the content and the calls of an answer that comes in these pieces."""
    reader = ToolCallParser(call_format, allows_several=allows_several, is_forced=is_forced)
    parts = [part for piece in pieces for part in reader.push(piece)] + reader.finish(is_cut_off=is_cut_off)
    calls: list[tuple[str, str]] = []
    for call in (call for part in parts for call in part.calls):
        if call.name is not None:
            assert call.index == len(calls)
            calls.append((call.name, ""))
        name, arguments = calls[call.index]
        calls[call.index] = (name, arguments + call.arguments)
    return "".join(part.content for part in parts), calls
