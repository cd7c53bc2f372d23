"""POST /v1/responses: a chat in OpenAI's newer form, without anything that would have to be kept."""

import re
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from caravan.server.generation.context import key_name_of, request_context
from caravan.server.generation.generation import Generation
from caravan.server.generation.served_model import ServedModel
from caravan.server.http.disconnect import until_disconnect
from caravan.server.http.errors import ApiError, as_api_error
from caravan.server.http.openapi import documented
from caravan.server.http.sse import EventStream, within
from caravan.server.openai.formatter import Pieces, start_generation
from caravan.server.openai.models import check_model
from caravan.server.openai.preparation import prepared_chat
from caravan.server.openai.protocol.answers import ResponseObject
from caravan.server.openai.protocol.generation_requests import ChatRequest
from caravan.server.openai.protocol.response_requests import ResponsesRequest
from caravan.server.openai.protocol.validated_body import read_body
from caravan.server.openai.protocol.validation import first_problem
from caravan.server.openai.response_writer import ResponseWriter

EXAMPLE = {"model": "smollm2", "instructions": "Be brief.", "input": "What is the capital of France?"}


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
        context = request_context(request.scope, body.priority, body.cache_salt)
        writer = ResponseWriter(body, chat, served, prepared.prompts[0])
        served.metrics.count_ignored_fields(body.ignored_fields)
        generation = start_generation(
            served,
            chat,
            prepared.prompts,
            grammar=grammar,
            context=context,
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
    new = body.read_input.places[int(place[1])] if place else names[old]
    message = error.message.replace(f"`{old}", f"`{new}", 1)
    return ApiError(error.status, message, param=new + param.removeprefix(old), code=error.code)
