"""The input of /v1/responses as the messages of a chat."""

from collections.abc import Callable, Collection
from typing import Any

from caravan.server.http.errors import invalid
from caravan.server.openai.protocol.custom_input import arguments_of_input
from caravan.server.openai.protocol.encoded_thought import decoded_thought
from caravan.server.openai.protocol.known_fields import RESPONSE_ITEM
from caravan.server.openai.protocol.response_tools import function_name
from caravan.server.openai.protocol.strict_model import nearest_name, unknown

_TEXTS = ("input_text", "output_text", "text", "refusal")
_OF_PARTS = ("type", "text", "refusal", "annotations", "logprobs")  # the latter two are in our own responses


class InputReader:
    """Reads the items of an input one by one."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.places: list[str] = []  # the path of each message in the request
        self.ignored: dict[str, str] = {}  # fields and items without effect, with a warning for each
        self._thought = ""  # reasoning of the next message of the assistant
        self._readers: dict[str, Callable[[dict[str, Any], str], None]] = {
            "message": self._read_message,
            "function_call": self._read_call,
            "function_call_output": self._read_output,
            "custom_tool_call": self._read_custom_call,
            "custom_tool_call_output": self._read_output,
            "reasoning": self._read_reasoning,
            "additional_tools": self._read_tools,  # they are among the tools of the request
        }

    def read(self, item: dict[str, Any], place: str) -> None:
        """Add one item; raises ApiError for an invalid one."""
        kind = item.get("type", "message")
        reader = self._readers.get(kind) if isinstance(kind, str) else None
        if reader is None:
            kinds = ", ".join(self._readers)
            raise invalid(f"`{place}` is of type {str(kind)[:60]}; it can be one of {kinds}.", place)
        reader(item, place)

    def add(self, message: dict[str, Any], place: str) -> None:
        """Add a message."""
        if message.get("role") == "assistant" and self._thought:
            message["reasoning_content"] = self._thought
            self._thought = ""
        self.end()
        self.messages.append(message)
        self.places.append(place)

    def end(self) -> None:
        """Add a warning for reasoning that no message of the assistant follows."""
        if self._thought:
            self.ignored["input[].reasoning"] = (
                "Items of type `reasoning` have no effect unless a text or a call of the assistant follows."
            )
            self._thought = ""

    def _read_message(self, item: dict[str, Any], place: str) -> None:
        self._check_names(item, {"type", "role", "content", "id", "status"}, place)
        text = _text(item.get("content"), f"{place}.content")
        last = self.messages[-1] if self.messages else {}
        if item.get("role") == "assistant" and last.get("tool_calls") and not self._thought:
            last["content"] = f"{last['content'] or ''}{text}"  # text after calls belongs to the same turn
        else:
            self.add({"role": item.get("role"), "content": text}, place)

    def _read_call(self, item: dict[str, Any], place: str) -> None:
        self._check_names(item, {"type", "id", "call_id", "name", "arguments", "status", "namespace"}, place)
        self._add_call(item, item.get("arguments"), place)

    def _read_custom_call(self, item: dict[str, Any], place: str) -> None:
        self._check_names(item, {"type", "id", "call_id", "name", "input", "status", "namespace"}, place)
        if not isinstance(item.get("input"), str):
            raise invalid(f"`{place}.input` must be a string.", f"{place}.input")
        self._add_call(item, arguments_of_input(item["input"]), place)

    def _read_output(self, item: dict[str, Any], place: str) -> None:
        self._check_names(item, {"type", "id", "call_id", "output", "status", "name"}, place)
        content = _text(item.get("output"), f"{place}.output")
        self.add({"role": "tool", "tool_call_id": item.get("call_id"), "content": content}, place)

    def _read_reasoning(self, item: dict[str, Any], place: str) -> None:
        self._check_names(item, {"type", "id", "summary", "content", "encrypted_content", "status"}, place)
        thought = _thought(item.get("content"), f"{place}.content") or _thought(item.get("summary"), f"{place}.summary")
        blob = item.get("encrypted_content")
        if not isinstance(blob, str | None):
            raise invalid(f"`{place}.encrypted_content` must be a string.", f"{place}.encrypted_content")
        if not thought and blob:
            thought = decoded_thought(blob) or ""
        if thought:
            self._thought = f"{self._thought}\n{thought}".strip()
        else:
            self.ignored["input[].reasoning"] = (
                "Items of type `reasoning` without a text, or with that of another server, have no effect."
            )

    def _read_tools(self, item: dict[str, Any], place: str) -> None:
        self._check_names(item, {"type", "id", "role", "tools"}, place)

    def _add_call(self, item: dict[str, Any], arguments: Any, place: str) -> None:
        """Add a call; consecutive calls, and calls after a text, belong to one message."""
        name = item.get("name")
        if isinstance(name, str) and item.get("namespace"):
            name = function_name(name, item["namespace"])
        call = {"id": item.get("call_id"), "type": "function", "function": {"name": name, "arguments": arguments}}
        if not self.messages or self.messages[-1].get("role") != "assistant" or self._thought:
            self.add({"role": "assistant", "content": None}, place)
        self.messages[-1].setdefault("tool_calls", []).append(call)

    def _check_names(self, item: dict[str, Any], known: Collection[str], place: str) -> None:
        for name, value in item.items():
            if name in known or value is None:
                continue
            if name not in RESPONSE_ITEM:
                shown = f"{place}.{name[:64]}"
                raise invalid(unknown(shown, nearest_name(name, [known])), shown)
            self.ignored[f"input[].{name}"] = f"`input[].{name}` has no effect on this server."
        for name in ("id", "status", "call_id", "name", "namespace"):
            if not isinstance(item.get(name), str | None):
                raise invalid(f"`{place}.{name}` must be a string.", f"{place}.{name}")


def _text(content: Any, place: str) -> str:
    """Return the text of a content that is a string or a list of parts."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, part in enumerate(content if isinstance(content, list) else [None]):
        known = part if isinstance(part, dict) else {}
        for name in known:
            if name not in _OF_PARTS and known[name] is not None:
                shown = f"{place}[{index}].{name[:64]}"
                raise invalid(unknown(shown, nearest_name(name, [_OF_PARTS])), shown)
        text = known.get("refusal" if known.get("type") == "refusal" else "text")
        if known.get("type") not in _TEXTS or not isinstance(text, str):
            raise invalid(f"`{place}` must be a string or a list of text parts.", place)
        texts.append(text)
    return "".join(texts)


def _thought(parts: Any, place: str) -> str:
    """Return the text of the parts of a reasoning item; `parts` may be None."""
    if parts is None:
        return ""
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise invalid(f"`{place}` must be a list of text parts.", place)
    texts = [part.get("text") for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise invalid(f"`{place}` must be a list of text parts.", place)
    return "\n".join(map(str, texts))
