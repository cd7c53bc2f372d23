"""POST /v1/responses: a chat in OpenAI's newer form, without anything that would have to be kept."""

import re
import time
import uuid
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from server.asker import asker_of, key_name_of
from server.disconnect import until_disconnect
from server.openai.answer import Pieces, start_generation
from server.openai.answer_schemas import ResponseObject
from server.openai.body import read_body
from server.openai.documentation import documented
from server.openai.errors import ApiError, as_api_error
from server.openai.generation import Generation
from server.openai.logprobs import chat_logprobs
from server.openai.message_warnings import message_warnings
from server.openai.models import check_model
from server.openai.preparation import prepared_chat
from server.openai.response_schemas import ResponsesRequest
from server.openai.schemas import ChatRequest
from server.openai.sse import EventStream, named_event, within
from server.openai.validation import first_problem
from server.served_model import ServedModel
from server.text_stream import TextPiece
from server.tools.call_reader import AnswerPart, CallReader

EXAMPLE = {"model": "smollm2", "instructions": "Be brief.", "input": "What is the capital of France?"}


class ResponseWriter:
    """One response: its output items as they come, and the events that tell of them."""

    def __init__(self, request: ResponsesRequest, chat: ChatRequest, served: ServedModel) -> None:
        self._request = request
        self._served = served
        self._reader = (
            CallReader(
                served.call_format,
                allows_several=chat.allows_several_calls,
                is_forced=bool(chat.required_tools),
            )
            if chat.shown_tools
            else None
        )
        self._warnings = [text.replace("`messages[]", "`input[]") for text in message_warnings(served, chat)]
        self.response_id = f"resp_{uuid.uuid4().hex}"
        self._created_at = int(time.time())
        self._output: list[dict[str, Any]] = []
        self._sequence_number = 0
        self._open_item: dict[str, Any] | None = None
        self._logprobs: list[dict[str, Any]] = []  # of tokens whose text is still to be told apart

    def begin(self) -> bytes:
        """Return the events before the first text."""
        response = self.response("in_progress", None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def take(self, piece: TextPiece) -> bytes:
        """Return the events of a piece."""
        parts = [AnswerPart(content=piece.text)] if self._reader is None else self._reader.push(piece.text)
        if piece.finish_reason is not None and self._reader is not None:
            parts += self._reader.finish(is_cut_off=piece.finish_reason == "length")
        if self._request.wants_logprobs:
            self._logprobs += chat_logprobs(piece.entries, self._served.tokenizer)["content"]
        events = b""
        for part in parts:
            if part.content or (self._reader is None and self._logprobs):
                events += self._add_text(part.content)
            if part.calls:
                self._logprobs = []  # calls have none
            for call in part.calls:
                if call.name is not None:
                    events += self._open_call(call.name)
                events += self._add_arguments(call.arguments)
        if piece.finish_reason is not None:
            if not self._output:
                events += self._add_text("")
            events += self._close("incomplete" if piece.finish_reason == "length" else "completed")
        return events

    def end(self, piece: TextPiece, generation: Generation) -> bytes:
        """Return the last event, after the last piece."""
        response = self.whole(piece, generation)
        return self._event(f"response.{response['status']}", response=response)

    def whole(self, piece: TextPiece, generation: Generation) -> dict[str, Any]:
        """Return the finished response."""
        status = "incomplete" if piece.finish_reason == "length" else "completed"
        return self.response(status, generation.usage()) | self._explanation(generation)

    def fail(self, error: ApiError, generation: Generation) -> bytes:
        """Return the event of an answer that broke off."""
        told = error.body()["error"]
        response = self.response("failed", None) | {
            "error": {"code": told["code"] or "server_error", "message": told["message"]}
        }
        response |= self._explanation(generation)
        return self._event("response.failed", response=response)

    def response(self, status: str, usage: dict[str, Any] | None) -> dict[str, Any]:
        """Return the response as it is now."""
        request = self._request
        body: dict[str, Any] = {
            "id": self.response_id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata,
            "model": request.model,
            "output": self._output,
            "parallel_tool_calls": request.parallel_tool_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature,
            "text": request.text.model_dump(include={"format"}, by_alias=True),
            "tool_choice": request.tool_choice,
            "tools": [tool.model_dump() for tool in request.tools],
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
        }
        warnings = [*request.warnings(), *self._warnings]
        return body | {"warnings": warnings} if warnings else body

    def _explanation(self, generation: Generation) -> dict[str, Any]:
        return {"explanation": generation.story.written()} if self._request.explain else {}

    def _add_text(self, text: str) -> bytes:
        events = b""
        logprobs, self._logprobs = self._logprobs, []
        if self._open_item is None or self._open_item["type"] != "message":
            events = self._close("completed")
            item = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant"}
            events += self._open(item | {"status": "in_progress", "content": []})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self._item["content"].append(part)
            events += self._event("response.content_part.added", **self._place(), content_index=0, part=part)
        part = self._item["content"][0]
        part["text"] += text
        part["logprobs"] += logprobs
        return events + self._event(
            "response.output_text.delta", **self._place(), content_index=0, delta=text, logprobs=logprobs
        )

    def _open_call(self, name: str) -> bytes:
        item = {
            "id": f"fc_{uuid.uuid4().hex}",
            "type": "function_call",
            "call_id": self._served.call_format.new_call_id(),
        }
        closed = self._close("completed")
        return closed + self._open(item | {"name": name, "arguments": "", "status": "in_progress"})

    def _add_arguments(self, text: str) -> bytes:
        if not text:
            return b""
        self._item["arguments"] += text
        return self._event("response.function_call_arguments.delta", **self._place(), delta=text)

    def _open(self, item: dict[str, Any]) -> bytes:
        self._open_item = item
        self._output.append(item)
        return self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _close(self, status: str) -> bytes:
        """Return the events that end the open item, if there is one."""
        if self._open_item is None:
            return b""
        item, place = self._item, self._place()
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            texts = {"text": part["text"], "logprobs": part["logprobs"]}
            events = self._event("response.output_text.done", **place, content_index=0, **texts)
            events += self._event("response.content_part.done", **place, content_index=0, part=part)
        else:
            told = {"name": item["name"], "arguments": item["arguments"]}
            events = self._event("response.function_call_arguments.done", **place, **told)
        self._open_item = None
        return events + self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    @property
    def _item(self) -> dict[str, Any]:
        assert self._open_item is not None
        return self._open_item

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item["id"], "output_index": len(self._output) - 1}

    def _event(self, kind: str, /, **fields: Any) -> bytes:
        payload = {"type": kind, "sequence_number": self._sequence_number, **fields}
        self._sequence_number += 1
        return named_event(kind, payload)


def responses_router(served: ServedModel) -> APIRouter:
    """Return the route that answers in OpenAI's newer form."""
    router = APIRouter(tags=["generation"])

    @router.post(
        "/v1/responses",
        summary="Answer, in the newer form",
        **documented(ResponsesRequest, EXAMPLE, answer=ResponseObject, is_streamed=True),
    )
    async def create_response(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, ResponsesRequest, served.limits)
        check_model(served, body.model)
        key_name = key_name_of(request.scope)
        chat = await served.executors.tokenizing.run(key_name, partial(_chat_of, body))  # it may have megabytes
        try:
            prepared = await prepared_chat(served, chat, key_name, request.receive)
        except ApiError as error:
            raise _renamed(error, body) from None
        grammar = prepared.grammar
        if grammar is not None and grammar.param == "response_format":
            grammar = grammar._replace(param="text.format")
        asker = asker_of(request.scope, body.priority, body.cache_salt)
        writer = ResponseWriter(body, chat, served)
        generation = start_generation(
            served,
            chat,
            prepared.prompts,
            grammar=grammar,
            asker=asker,
            arrived_at_seconds=arrived_at_seconds,
            answer_id=writer.response_id,
        )
        is_handed_over = False
        try:
            if not body.stream:
                whole = await until_disconnect(request.receive, _whole(writer, generation))
                return Response(msgspec.json.encode(whole), media_type="application/json")
            limits = served.limits
            first = await until_disconnect(request.receive, within(limits.keep_alive_seconds, generation.next_pieces()))
            is_handed_over = True
            return EventStream(
                _events(writer, generation, first),
                write_timeout_seconds=limits.write_timeout_seconds,
                keep_alive_seconds=limits.keep_alive_seconds,
                on_end=generation.end,
            )
        finally:
            if not is_handed_over:
                generation.end()

    return router


async def _whole(writer: ResponseWriter, generation: Generation) -> dict[str, Any]:
    """Return the finished response, put together as its stream would be."""
    while True:
        pieces = await generation.next_pieces()
        for _, piece in pieces:
            writer.take(piece)
        if generation.is_finished:
            return writer.whole(pieces[-1][1], generation)


async def _events(writer: ResponseWriter, generation: Generation, pieces: Pieces) -> AsyncGenerator[bytes, None]:
    events = writer.begin()
    try:
        while True:
            for _, piece in pieces:
                events += writer.take(piece)
            if generation.is_finished:
                break
            yield events
            events = b""
            pieces = await generation.next_pieces()
        events += writer.end(pieces[-1][1], generation)
    except Exception as error:
        generation.end()  # so that its story has an end
        events += writer.fail(as_api_error(error), generation)
    yield events


def _chat_of(body: ResponsesRequest) -> ChatRequest:
    """Return the chat that asks for the same; what is wrong with a message is wrong with the input."""
    try:
        return ChatRequest.model_validate(body.as_chat())
    except ValidationError as error:
        raise _renamed(first_problem(error, body.as_chat()), body) from None


def _renamed(error: ApiError, body: ResponsesRequest) -> ApiError:
    """Return an error of the chat that a response asks for, with the names that its fields have there."""
    names = {"response_format": "text.format", "max_completion_tokens": "max_output_tokens", "messages": "input"}
    param = error.param or ""
    place = re.match(r"messages\[(\d+)\]", param)
    old = place[0] if place else next((name for name in names if param.startswith(name)), "")
    if not old:
        return error
    new = body.places[int(place[1])] if place else names[old]
    message = error.message.replace(f"`{old}", f"`{new}", 1)
    return ApiError(error.status, message, param=new + param.removeprefix(old), code=error.code)


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": usage["prompt_tokens_details"]["cached_tokens"]},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
