"""POST /v1/chat/completions."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.server.generation.context import key_name_of, request_context
from caravan.server.generation.served_models import ServedModels
from caravan.server.generation.text_stream import TextDelta
from caravan.server.http.openapi import documented
from caravan.server.openai.formatter import Formatter
from caravan.server.openai.logprobs import chat_logprobs, prompt_logprobs, token_id_logprobs
from caravan.server.openai.models import chosen_model
from caravan.server.openai.preparation import generation_of, prepared_chat
from caravan.server.openai.protocol.chat import (
    Call,
    CallTarget,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatFinishReason,
    ChatMessage,
    ChatRequest,
)
from caravan.server.openai.protocol.response_model import ChatLogprobs
from caravan.server.openai.protocol.strict_model import ignored_fields
from caravan.server.openai.protocol.validated_body import read_body
from caravan.server.openai.run_generation import run_generation
from caravan.server.openai.template_messages import message_warnings
from caravan.server.openai.tool_calls.call_format import CallFormat, call_format_of
from caravan.server.openai.tool_calls.tool_call_parser import ToolCallParser

EXAMPLE = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_completion_tokens": 20,
    "stream": True,
}


class ChatShape:
    """Writes the choices of a chat: messages in a whole response, deltas in chunks, of which the first has the role."""

    id_prefix = "chatcmpl-"

    def __init__(self, request: ChatRequest, tokenizer: Tokenizer, call_format: CallFormat) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._call_format = call_format
        self._has_tools = bool(request.shown_tools)
        self._has_logprobs = bool(request.logprobs)
        self._has_token_ids = request.return_token_ids
        self._hides_thoughts = request.hides_thoughts
        self._parsers: dict[int, ToolCallParser] = {}  # by choice, of a request with tools

    def opening(self, index: int) -> ChatChunkChoice:
        """Return a choice's first chunk, with its role."""
        return ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))

    def chunk(self, index: int, delta: TextDelta) -> ChatChunkChoice | None:
        """Return a choice's part of one chunk; None while its text may still become a tool call."""
        thought = "" if self._hides_thoughts else delta.thought
        content, calls = self._parsed(index, delta) if self._has_tools else (delta.text, [])
        has_thought_entries = bool(delta.thought_entries) and not self._hides_thoughts
        has_entries = delta.entries or delta.token_logprobs or has_thought_entries
        if not (content or calls or thought or has_entries or delta.finish_reason or self._has_token_ids):
            return None
        shown = ChatDelta(content=content if content or not (calls or thought) else UNSET, tool_calls=calls or UNSET)
        if thought:
            shown.reasoning = shown.reasoning_content = thought
        choice = ChatChunkChoice(index=index, delta=shown, finish_reason=self._finish_reason(index, delta))
        if has_entries and self._has_logprobs:
            choice.logprobs = self._logprobs(delta)
        if delta.stop_reason:
            choice.stop_reason = "repetition"
        if self._has_token_ids:
            choice.token_ids = delta.token_ids
        if delta.token_logprobs:
            choice.token_id_logprobs = token_id_logprobs(self._request.logprob_token_ids, delta.token_logprobs)
        return choice

    def chunk_body(
        self, head: dict[str, Any], choices: list[ChatChunkChoice], fields: dict[str, Any]
    ) -> ChatCompletionChunk:
        """Return a chunk."""
        return ChatCompletionChunk(**head, object="chat.completion.chunk", choices=choices, **fields)

    def body(self, head: dict[str, Any], choices: list[TextDelta], fields: dict[str, Any]) -> ChatCompletion:
        """Return a whole response."""
        written = [self._whole(index, choice) for index, choice in enumerate(choices)]
        response = ChatCompletion(**head, object="chat.completion", choices=written, **fields)
        num_alternatives = self._request.prompt_logprobs
        if num_alternatives is not None:
            entries = choices[0].prompt_entries
            response.prompt_logprobs = prompt_logprobs(entries, self._tokenizer, num_alternatives)
        return response

    def _whole(self, index: int, choice: TextDelta) -> ChatChoice:
        message = ChatMessage(content=choice.text)
        if self._request.shown_tools:
            content, calls = self._parsed(index, choice)
            message.content = content or (None if calls else "")
            if calls:
                for call in calls:
                    call.index = UNSET
                message.tool_calls = calls
        if choice.thought and not self._hides_thoughts:
            message.reasoning = message.reasoning_content = choice.thought
        return ChatChoice(
            index=index,
            message=message,
            logprobs=self._logprobs(choice) if self._has_logprobs else None,
            finish_reason=self._finish_reason(index, choice),
            stop_reason="repetition" if choice.stop_reason else UNSET,
            token_ids=choice.token_ids if self._request.return_token_ids else UNSET,
            token_id_logprobs=token_id_logprobs(self._request.logprob_token_ids, choice.token_logprobs)
            if choice.token_logprobs
            else UNSET,
        )

    def _logprobs(self, delta: TextDelta) -> ChatLogprobs:
        """Return the log-probabilities of the content, and those of the thought if there is one."""
        logprobs = ChatLogprobs(content=chat_logprobs(delta.entries, self._tokenizer))
        if delta.thought_entries and not self._hides_thoughts:
            logprobs.reasoning = chat_logprobs(delta.thought_entries, self._tokenizer)
        return logprobs

    def _parsed(self, index: int, delta: TextDelta) -> tuple[str, list[Call]]:
        """Return the content of a delta and its tool calls."""
        parser = self._parsers.get(index)
        if parser is None:
            parser = self._parsers[index] = ToolCallParser(
                self._call_format,
                allows_several=self._request.allows_several_calls,
                is_forced=bool(self._request.required_tools),
            )
        parts = parser.push(delta.text)
        if delta.finish_reason is not None:
            parts += parser.finish(is_cut_off=delta.finish_reason == "length")
        calls: dict[int, Call] = {}
        for new in (call for part in parts for call in part.calls):
            call = calls.setdefault(new.index, Call(index=new.index, function=CallTarget(arguments="")))
            call.function.arguments += new.arguments
            if new.name is not None:
                call.function.name = new.name
                call.id = self._call_format.new_call_id()
                call.type = "function"
        return "".join(part.content for part in parts), list(calls.values())

    def _finish_reason(self, index: int, delta: TextDelta) -> ChatFinishReason | None:
        parser = self._parsers.get(index)
        has_called = parser is not None and parser.num_calls > 0 and not parser.is_in_call
        return "tool_calls" if delta.finish_reason == "stop" and has_called else delta.finish_reason


def chat_router(models: ServedModels) -> APIRouter:
    """Return the router of POST /v1/chat/completions."""
    router = APIRouter(tags=["generation"])

    @router.post(
        "/v1/chat/completions",
        summary="Create a chat completion",
        **documented(ChatRequest, EXAMPLE, answer=ChatCompletion, is_streamed=True),
    )
    async def create_chat_completion(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, ChatRequest, models.limits)
        served = chosen_model(models, body.model, request.scope)
        served.metrics.count_ignored_fields(ignored_fields(body))
        prepared = await prepared_chat(served, body, key_name_of(request.scope), request.receive)
        shape = ChatShape(body, served.tokenizer, call_format_of(served.chat_template))
        formatter = Formatter(body, prepared.prompts, shape, message_warnings(served, body))
        context = request_context(request.scope, body.priority, body.cache_salt, arrived_at_seconds)
        generation = generation_of(served, body, prepared, context, formatter.answer_id)
        return await run_generation(request, generation, formatter, served.limits, is_stream=body.stream)

    return router
