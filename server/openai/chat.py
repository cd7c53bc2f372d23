"""POST /v1/chat/completions."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.server.generation.context import key_name_of, request_context
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.text_stream import TextPiece
from caravan.server.http.openapi import documented
from caravan.server.openai.formatter import GenerationResponse
from caravan.server.openai.logprobs import chat_logprobs
from caravan.server.openai.message_warnings import message_warnings
from caravan.server.openai.models import check_model
from caravan.server.openai.preparation import prepared_chat
from caravan.server.openai.protocol.answers import ChatCompletion
from caravan.server.openai.protocol.generation_requests import ChatRequest
from caravan.server.openai.protocol.ignored_fields import ignored_fields
from caravan.server.openai.protocol.validated_body import read_body
from caravan.server.openai.tool_calls.call_format import CallFormat, call_format_of
from caravan.server.openai.tool_calls.tool_call_parser import ToolCallParser

EXAMPLE = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_completion_tokens": 20,
    "stream": True,
}


class ChatShape:
    """How a chat choice is written: a message as a whole, deltas as chunks, the role before the first delta."""

    id_prefix = "chatcmpl-"
    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"

    def __init__(self, request: ChatRequest, tokenizer: Tokenizer, call_format: CallFormat) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._call_format = call_format
        self._readers: dict[int, ToolCallParser] = {}  # by choice, of a request with tools

    def whole(self, index: int, choice: TextPiece) -> dict[str, Any]:
        """Return a finished choice."""
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if self._request.shown_tools:
            content, calls = self._told_apart(index, choice)
            message["content"] = content or (None if calls else "")
            if calls:
                message["tool_calls"] = [_without_index(call) for call in calls]
        return self._choice(index, "message", message, choice)

    def chunk(self, index: int, piece: TextPiece) -> dict[str, Any] | None:
        """Return a choice's share of one chunk; None if its text is still to be told apart."""
        if not self._request.shown_tools:
            return self._choice(index, "delta", {"content": piece.text}, piece)
        content, calls = self._told_apart(index, piece)
        if not (content or calls or piece.entries or piece.finish_reason or self._request.return_token_ids):
            return None
        delta: dict[str, Any] = {"content": content} if content or not calls else {}
        if calls:
            delta["tool_calls"] = calls
        return self._choice(index, "delta", delta, piece)

    def _told_apart(self, index: int, piece: TextPiece) -> tuple[str, list[dict[str, Any]]]:
        """Return the content of a piece, and what it says of calls."""
        reader = self._readers.get(index)
        if reader is None:
            reader = self._readers[index] = ToolCallParser(
                self._call_format,
                allows_several=self._request.allows_several_calls,
                is_forced=bool(self._request.required_tools),
            )
        parts = reader.push(piece.text)
        if piece.finish_reason is not None:
            parts += reader.finish(is_cut_off=piece.finish_reason == "length")
        calls: dict[int, dict[str, Any]] = {}
        for call in (call for part in parts for call in part.calls):
            known = calls.setdefault(call.index, {"index": call.index, "function": {"arguments": ""}})
            known["function"]["arguments"] += call.arguments
            if call.name is not None:
                function = {"name": call.name, **known["function"]}
                known |= {"id": self._call_format.new_call_id(), "type": "function", "function": function}
        return "".join(part.content for part in parts), list(calls.values())

    def opening(self, index: int) -> dict[str, Any]:
        """Return the share that names the role."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _choice(self, index: int, kind: str, content: dict[str, Any], piece: TextPiece) -> dict[str, Any]:
        has_logprobs = self._request.logprobs and (piece.entries or kind == "message")
        choice: dict[str, Any] = {
            "index": index,
            kind: content,
            "logprobs": chat_logprobs(piece.entries, self._tokenizer) if has_logprobs else None,
            "finish_reason": self._finish_reason(index, piece),
        }
        if self._request.return_token_ids:
            choice["token_ids"] = piece.token_ids
        return choice

    def _finish_reason(self, index: int, piece: TextPiece) -> str | None:
        reader = self._readers.get(index)
        has_called = reader is not None and reader.num_calls > 0 and not reader.is_in_call
        return "tool_calls" if piece.finish_reason == "stop" and has_called else piece.finish_reason


def _without_index(call: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if name != "index"}


def chat_router(served: ServedModel) -> APIRouter:
    """Return the route that answers conversations."""
    router = APIRouter(tags=["generation"])

    @router.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        **documented(ChatRequest, EXAMPLE, answer=ChatCompletion, is_streamed=True),
    )
    async def create_chat_completion(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, ChatRequest, served.limits)
        check_model(served, body.model)
        served.metrics.count_ignored_fields(ignored_fields(body))
        prepared = await prepared_chat(served, body, key_name_of(request.scope), request.receive)
        shape = ChatShape(body, served.tokenizer, call_format_of(served.chat_template))
        context = request_context(request.scope, body.priority, body.cache_salt)
        answer = GenerationResponse(
            served,
            body,
            prepared.prompts,
            shape,
            grammar=prepared.grammar,
            context=context,
            arrived_at_seconds=arrived_at_seconds,
            warnings=message_warnings(served, body),
        )
        return await answer.respond(request)

    return router
