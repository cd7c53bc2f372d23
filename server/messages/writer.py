"""MessageWriter: the blocks of one message, and the events of its stream."""

import json
import uuid
from typing import Any

from msgspec import UNSET
from pydantic_core import from_json

from caravan.server.generation.generation import Generation
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.text_stream import TextDelta
from caravan.server.http.errors import ApiError
from caravan.server.http.sse import named_event
from caravan.server.messages.error_form import anthropic_error
from caravan.server.messages.protocol.answer import (
    BlockDelta,
    BlockDeltaEvent,
    MessageObject,
    MessageText,
    MessageThinking,
    MessageToolUse,
    MessageUsage,
    OutputBlock,
    StopDetails,
    StopKind,
    ThinkingTokens,
)
from caravan.server.messages.protocol.request import MessagesRequest
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.encoded_thought import encoded_thought
from caravan.server.openai.protocol.fields import check_depth
from caravan.server.openai.protocol.response_model import Timings
from caravan.server.openai.tool_calls.call_format import call_format_of
from caravan.server.openai.tool_calls.tool_call_parser import ResponsePart, ToolCallParser


class MessageWriter:
    """Writes one message, whole or as events. Blocks follow each other: thought, texts and calls in their order."""

    def __init__(
        self,
        request: MessagesRequest,
        chat: ChatRequest,
        served: ServedModel,
        prompt_token_ids: list[int],
        warnings: list[str],
        *,
        fills_context: bool,
    ) -> None:
        """`fills_context`: the context ends the message before `max_tokens` does."""
        self.answer_id = f"msg_{uuid.uuid4().hex}"
        self._request = request
        self._call_format = call_format_of(served.chat_template)
        self._parser = (
            ToolCallParser(
                self._call_format, allows_several=chat.allows_several_calls, is_forced=bool(chat.required_tools)
            )
            if chat.shown_tools
            else None
        )
        self._names = {tool.function_name: tool.name for tool in request.client_tools.values()}
        self._prompt_token_ids = prompt_token_ids
        self._warnings = warnings
        self._fills_context = fills_context
        self._content: list[OutputBlock] = []
        self._open_block: OutputBlock | None = None
        self._arguments = ""  # of the open call
        self._has_begun = False
        self._token_ids: list[int] = []
        self._stop_reason: StopKind | None = None
        self._stop_sequence: str | None = None
        self._is_repetition = False

    def begin(self) -> bytes:
        """Return no event: the first one has counts that come with the first delta."""
        return b""

    def delta(self, index: int, delta: TextDelta, generation: Generation) -> bytes:  # noqa: ARG002  # of EndpointWriter
        """Return the events of the next delta."""
        events = b""
        if not self._has_begun:
            self._has_begun = True
            events = named_event("message_start", {"type": "message_start", "message": self._message(generation)})
        if self._request.return_token_ids:
            self._token_ids += delta.token_ids
        if delta.thought:
            events += self._add_thought(delta.thought)
        if self._parser is None:
            if delta.text:
                events += self._add_text(delta.text)
        else:
            parts = self._parser.push(delta.text)
            if delta.finish_reason is not None:
                parts += self._parser.finish(is_cut_off=delta.finish_reason == "length")
            for part in parts:
                events += self._add_part(part)
        if delta.finish_reason is not None:
            events += self._finish(delta)
        return events

    def end(self, generation: Generation) -> bytes:
        """Return the last events, after the last delta."""
        message = self._finished(generation)
        event: dict[str, Any] = {
            "type": "message_delta",
            "delta": {"stop_reason": message.stop_reason, "stop_sequence": message.stop_sequence},
            "usage": message.usage,
        }
        for name in ("stop_details", "token_ids", "prompt_token_ids", "explanation"):
            if getattr(message, name) is not UNSET:
                event[name] = getattr(message, name)
        return named_event("message_delta", event) + named_event("message_stop", {"type": "message_stop"})

    def fail(self, error: ApiError, generation: Generation) -> bytes:
        """Return the event of a message that failed."""
        body = anthropic_error(error, generation.record.request_id)
        if self._request.explain:
            body["explanation"] = generation.record.explanation()
        return named_event("error", body)

    def add(self, index: int, delta: TextDelta, generation: Generation) -> None:
        """Add a delta to the message, as in its stream."""
        self.delta(index, delta, generation)

    def whole(self, generation: Generation) -> MessageObject:
        """Return the message as one object."""
        return self._finished(generation)

    def _finished(self, generation: Generation) -> MessageObject:
        message = self._message(generation)
        message.stop_reason, message.stop_sequence = self._stop_reason, self._stop_sequence
        if self._is_repetition:
            message.stop_details = StopDetails()
        if self._request.return_token_ids:
            message.prompt_token_ids, message.token_ids = self._prompt_token_ids, self._token_ids
        if self._request.explain:
            message.explanation = generation.record.explanation()
        return message

    def _message(self, generation: Generation) -> MessageObject:
        """Return the message as it is now."""
        return MessageObject(
            id=self.answer_id,
            model=self._request.model,
            content=self._content,
            usage=_usage(generation.usage()),
            warnings=self._warnings or UNSET,
        )

    def _add_part(self, part: ResponsePart) -> bytes:
        events = self._add_text(part.content) if part.content else b""
        for call in part.calls:
            if call.name is not None:
                events += self._open_call(call.name)
            if call.arguments:
                self._arguments += call.arguments
                events += self._delta_event(BlockDelta(type="input_json_delta", partial_json=call.arguments))
        return events

    def _add_text(self, text: str) -> bytes:
        events = b""
        block = self._open_block
        if not isinstance(block, MessageText):
            block = MessageText()
            events = self._close() + self._open(block)
        block.text += text
        return events + self._delta_event(BlockDelta(type="text_delta", text=text))

    def _add_thought(self, text: str) -> bytes:
        events = b""
        block = self._open_block
        if not isinstance(block, MessageThinking):
            block = MessageThinking()
            events = self._close() + self._open(block)
        block.thinking += text
        return events + self._delta_event(BlockDelta(type="thinking_delta", thinking=text))

    def _open_call(self, name: str) -> bytes:
        closed = self._close()
        self._arguments = ""
        call_id = self._call_format.new_call_id()
        if call_id.startswith("call_"):
            call_id = f"toolu_{call_id.removeprefix('call_')}"
        return closed + self._open(MessageToolUse(id=call_id, name=self._names.get(name, name), input={}))

    def _open(self, block: OutputBlock) -> bytes:
        """Add a block, still without content, and return the event that begins it."""
        self._open_block = block
        self._content.append(block)
        payload = {"type": "content_block_start", "index": len(self._content) - 1, "content_block": block}
        return named_event("content_block_start", payload)

    def _close(self) -> bytes:
        """Return the events that end the open block, if there is one."""
        block, self._open_block = self._open_block, None
        if block is None:
            return b""
        events = b""
        if isinstance(block, MessageThinking):
            block.signature = encoded_thought(block.thinking)
            events = self._delta_event(BlockDelta(type="signature_delta", signature=block.signature))
        elif isinstance(block, MessageToolUse):
            block.input = input_of(self._arguments)
        index = len(self._content) - 1
        return events + named_event("content_block_stop", {"type": "content_block_stop", "index": index})

    def _delta_event(self, delta: BlockDelta) -> bytes:
        return named_event("content_block_delta", BlockDeltaEvent(index=len(self._content) - 1, delta=delta))

    def _finish(self, delta: TextDelta) -> bytes:
        """Return the events that end the last block, and store why the message has ended."""
        has_called = self._parser is not None and self._parser.num_calls > 0 and not self._parser.is_in_call
        if delta.finish_reason == "length":
            self._stop_reason = "model_context_window_exceeded" if self._fills_context else "max_tokens"
        elif has_called:
            self._stop_reason = "tool_use"
        elif delta.stop_string:
            self._stop_reason, self._stop_sequence = "stop_sequence", delta.stop_string
        else:
            self._stop_reason = "end_turn"
            self._is_repetition = bool(delta.stop_reason)
        events = b""
        has_answer = any(not isinstance(block, MessageThinking) for block in self._content)
        if not has_answer and not (self._content and delta.finish_reason == "length"):
            events = self._close() + self._open(MessageText())
        return events + self._close()


def input_of(arguments: str) -> dict[str, Any]:
    """Return the input of a call; of arguments that were cut off it is what clients read from their beginning."""
    try:
        parsed = from_json(arguments or "{}", allow_partial=True)
    except ValueError:  # such as half of a surrogate pair, which becomes U+FFFD
        try:
            parsed = json.loads(arguments, strict=False)
            check_depth(parsed)
            text = json.dumps(parsed, ensure_ascii=False)
            parsed = json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        except (ValueError, RecursionError):
            parsed = None
    return parsed if isinstance(parsed, dict) else {"arguments": arguments}


def _usage(usage: dict[str, Any]) -> MessageUsage:
    details = usage.get("completion_tokens_details")
    num_cached = usage["prompt_tokens_details"]["cached_tokens"]
    return MessageUsage(
        input_tokens=usage["prompt_tokens"] - num_cached,
        cache_read_input_tokens=num_cached,
        output_tokens=usage["completion_tokens"],
        output_tokens_details=UNSET if details is None else ThinkingTokens(thinking_tokens=details["reasoning_tokens"]),
        timings=Timings(**usage["timings"]) if "timings" in usage else UNSET,
    )
