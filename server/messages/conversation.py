"""Conversation: the messages of a request as those of a chat.

A chat template writes each message where it stands, so a prompt only grows from one request of a client to the next,
and its beginning is found in the prefix cache. Nothing is moved to the front: system messages after the first message
stay in their places, or become text of the user's turn beside them where the template does not take them.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from caravan.server.http.errors import invalid
from caravan.server.messages.protocol.blocks import (
    AbsentBlock,
    Block,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolReference,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)
from caravan.server.messages.protocol.request import PromptBody
from caravan.server.openai.protocol.encoded_thought import decoded_thought
from caravan.server.openai.protocol.response_tools import function_name
from caravan.server.sandbox.template_shape import TemplateShape

# A line of Claude Code, which differs between conversations and so would keep them from sharing a prefix.
_BILLING = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n?")


class Conversation:
    """Reads a request into `messages`."""

    def __init__(self, body: PromptBody, shape: TemplateShape) -> None:
        """`shape` is that of the template that will render the messages; raises ApiError for a block out of place."""
        self.messages: list[dict[str, Any]] = []
        self.places: list[str] = []  # the path of each message in the request
        self.ignored: dict[str, str] = {}  # a warning for each kind of block that has no effect, by path
        self._shape = shape
        self._add_system(self._system_text(body.system), "system")
        for index, turn in enumerate(body.messages):
            place = f"messages[{index}]"
            self._check_roles(turn, place)
            if turn.role == "system":
                self._add_system(self._system_text(turn.content), place)
            elif turn.role == "user":
                self._add_turn_of_user(turn, place)
            else:
                self._add_turn_of_assistant(turn, place)
        if not self.messages:
            raise invalid("`messages` has no text for the model.", "messages")

    @property
    def _takes_systems(self) -> bool:
        """Whether the template takes a system message at the beginning; one that was not probed does."""
        return not self._shape.roles or "system" in self._shape.roles

    @property
    def continues_last(self) -> bool:
        """Whether the response continues the last message: a text of the assistant."""
        last = self.messages[-1]
        return last["role"] == "assistant" and bool(last["content"]) and "tool_calls" not in last

    def _system_text(self, blocks: Iterable[Block]) -> str:
        """Return the text of a system message without the line of Claude Code."""
        texts = [block.text for block in self._read(blocks, takes_references=False) if isinstance(block, TextBlock)]
        kept = [_BILLING.sub("", text) for text in texts]
        if kept != texts:
            self.ignored["system.x-anthropic-billing-header"] = (
                "The line `x-anthropic-billing-header` of the system prompt is left out."
            )
        return "\n".join(filter(None, kept))

    def _add_system(self, text: str, place: str) -> None:
        if not text:
            return
        last = self.messages[-1] if self.messages else None
        if last is not None and last["role"] == "system":
            last["content"] += f"\n{text}"
        elif self._shape.takes_late_systems or (last is None and self._takes_systems):
            self._add({"role": "system", "content": text}, place)
        else:
            self._add_text_of_user(text, place)

    def _add_text_of_user(self, text: str, place: str) -> None:
        """Add a text to the user's turn: consecutive messages of a role are one turn."""
        last = self.messages[-1] if self.messages else {"role": ""}
        is_result = last["role"] == "tool" and not self._shape.takes_text_after_results
        if last["role"] == "user" or is_result:
            last["content"] = "\n".join(filter(None, (last["content"], text)))
        else:
            self._add({"role": "user", "content": text}, place)

    def _add_turn_of_user(self, turn: Turn, place: str) -> None:
        texts: list[str] = []
        has_added = False
        for block in self._read(turn.content):
            if isinstance(block, ToolResultBlock):
                if texts:
                    self._add_text_of_user("\n".join(texts), place)
                    texts = []
                result = {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result_text(block)}
                self._add(result, place)
                has_added = True
            elif isinstance(block, TextBlock | ToolReference):
                texts.append(_text(block))
        if texts or not has_added:
            self._add_text_of_user("\n".join(texts), place)

    def _add_turn_of_assistant(self, turn: Turn, place: str) -> None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self._add({"role": "assistant", "content": ""}, place)
        message = self.messages[-1]
        for block in self._read(turn.content, takes_references=False):
            if isinstance(block, TextBlock):
                message["content"] += block.text
            elif isinstance(block, ToolUseBlock):
                function = {
                    "name": function_name(block.name, None),
                    "arguments": json.dumps(block.input, ensure_ascii=False),
                }
                call = {"id": block.id, "type": "function", "function": function}
                message.setdefault("tool_calls", []).append(call)
            elif isinstance(block, ThinkingBlock | RedactedThinkingBlock):
                thought = self._thought(block)
                if thought:
                    message["reasoning_content"] = f"{message.get('reasoning_content', '')}\n{thought}".strip("\n")

    def _thought(self, block: ThinkingBlock | RedactedThinkingBlock) -> str:
        encoded = block.signature if isinstance(block, ThinkingBlock) else block.data
        readable = block.thinking if isinstance(block, ThinkingBlock) else ""
        thought = readable or decoded_thought(encoded) or ""
        if not thought:
            self.ignored["messages[].content[].thinking"] = (
                "Blocks of type `thinking` without a text, or with that of another server, have no effect."
            )
        return thought

    def _read(self, blocks: Iterable[Block], *, takes_references: bool = True) -> list[Block]:
        """Return the blocks that the model reads, and add a warning for each kind of others."""
        read: list[Block] = []
        for block in blocks:
            if isinstance(block, AbsentBlock) or (isinstance(block, ToolReference) and not takes_references):
                self.ignored[f"messages[].content[].{block.type}"] = f"Blocks of type `{block.type}` are left out."
            else:
                read.append(block)
        return read

    def _check_roles(self, turn: Turn, place: str) -> None:
        """Raise ApiError for a block that messages of another role have."""
        for index, block in enumerate(turn.content):
            role = ""
            if isinstance(block, ToolUseBlock | ThinkingBlock | RedactedThinkingBlock):
                role = "assistant"
            elif isinstance(block, ToolResultBlock):
                role = "user"
            if role and role != turn.role:
                where = f"{place}.content[{index}]"
                raise invalid(f"`{where}` is of type {block.type}, which only messages of the role {role} have.", where)

    def _add(self, message: dict[str, Any], place: str) -> None:
        self.messages.append(message)
        self.places.append(place)


def _text(part: TextBlock | ToolReference) -> str:
    return part.text if isinstance(part, TextBlock) else part.tool_name


def _result_text(block: ToolResultBlock) -> str:
    """Return the text of a result; that of a failed call begins with Error."""
    text = "\n".join(_text(part) for part in block.content if isinstance(part, TextBlock | ToolReference))
    return f"Error: {text}" if block.is_error else text
