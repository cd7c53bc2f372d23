"""OllamaMessage: a turn of a conversation; calls have objects as arguments, and results the names of their tools."""

import json
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from caravan.server.http.errors import invalid
from caravan.server.openai.protocol.fields import SchemaField
from caravan.server.openai.protocol.known_field import KnownFields, ignored, refused
from caravan.server.openai.protocol.strict_model import StrictModel
from caravan.server.openai.protocol.tools import MAX_TOOLS

_OLLAMA = "Ollama"
MESSAGE: KnownFields = {"images": refused(_OLLAMA, harmless=([],))}
CALLED: KnownFields = {"index": ignored(_OLLAMA), "description": ignored(_OLLAMA)}


class OllamaFunction(StrictModel):
    """The function of a call, and its arguments."""

    known_fields: ClassVar[KnownFields] = CALLED

    name: str
    arguments: SchemaField = Field({}, description="An object.")


class OllamaCall(StrictModel):
    """A call in an earlier message of the assistant."""

    id: str | None = Field(None, max_length=256)
    type: Literal["function"] = "function"
    function: OllamaFunction


class OllamaMessage(StrictModel):
    """One turn of a conversation."""

    known_fields: ClassVar[KnownFields] = MESSAGE

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str = Field("", description="Earlier reasoning, for chat templates that render it.")
    tool_calls: list[OllamaCall] = Field([], max_length=MAX_TOOLS)
    tool_name: str | None = Field(None, max_length=256, description="The function whose result the message has.")
    tool_call_id: str | None = Field(None, max_length=256, description="The call whose result the message has.")


def chat_messages(messages: Sequence[OllamaMessage]) -> list[dict[str, Any]]:
    """Return the messages in the form of a chat request.

    Calls without an id get one by their number. The result of a tool belongs to the call with its id, else to the first
    call of that tool without a result, else to the first call without one.
    """
    written: list[dict[str, Any]] = []
    num_calls = 0
    waiting: dict[str, str] = {}  # calls without a result: their functions by id
    for index, message in enumerate(messages):
        _check_role(message, f"messages[{index}]")
        plain: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.thinking:
            plain["reasoning_content"] = message.thinking
        for call in message.tool_calls:
            num_calls += 1
            call_id = call.id or f"call_{num_calls}"
            waiting[call_id] = call.function.name
            arguments = json.dumps(call.function.arguments, ensure_ascii=False)
            function = {"name": call.function.name, "arguments": arguments}
            plain.setdefault("tool_calls", []).append({"id": call_id, "type": "function", "function": function})
        if message.role == "tool":
            plain |= _result_of(message, waiting)
        written.append(plain)
    return written


def _check_role(message: OllamaMessage, place: str) -> None:
    """Raise ApiError for a field that messages of another role have."""
    for name in ("tool_name", "tool_call_id"):
        if getattr(message, name) is not None and message.role != "tool":
            raise invalid(f"`{place}.{name}` belongs to messages of the role tool.", f"{place}.{name}")


def _result_of(message: OllamaMessage, waiting: dict[str, str]) -> dict[str, str]:
    """Return the fields that say which call a message is the result of, and remove that call from `waiting`."""
    fields = {} if message.tool_name is None else {"name": message.tool_name}
    call_id = message.tool_call_id
    if call_id is None:
        named = [one for one, name in waiting.items() if name == message.tool_name]
        call_id = next(iter([*named, *waiting]), None)
    if call_id is not None:
        fields["tool_call_id"] = call_id
        waiting.pop(call_id, None)
    return fields
