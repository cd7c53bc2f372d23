"""POST /v1/responses, without stored responses."""

import re
import time
from functools import partial

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from caravan.server.generation.context import key_name_of, request_context
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.errors import ApiError
from caravan.server.http.openapi import documented
from caravan.server.openai.models import chosen_model
from caravan.server.openai.preparation import generation_of, prepared_chat
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.response_object import ResponseObject
from caravan.server.openai.protocol.responses import ResponsesRequest
from caravan.server.openai.protocol.validated_body import read_body
from caravan.server.openai.protocol.validation import first_problem
from caravan.server.openai.response_writer import ResponseWriter
from caravan.server.openai.run_generation import run_generation

EXAMPLE = {"model": "smollm2", "instructions": "Be brief.", "input": "What is the capital of France?"}


def responses_router(models: ServedModels) -> APIRouter:
    """Return the router of POST /v1/responses."""
    router = APIRouter(tags=["generation"])

    @router.post(
        "/v1/responses",
        summary="Create a response",
        **documented(ResponsesRequest, EXAMPLE, answer=ResponseObject, is_streamed=True),
    )
    async def create_response(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, ResponsesRequest, models.limits)
        served = chosen_model(models, body.model, request.scope)
        key_name = key_name_of(request.scope)
        chat = await served.executors.tokenizing.run(key_name, partial(_chat_of, body))  # a body may have megabytes
        try:
            prepared = await prepared_chat(served, chat, key_name, request.receive)
        except ApiError as error:
            raise _renamed(error, body) from None
        grammar = prepared.grammar
        if grammar is not None and grammar.param == "response_format":
            grammar = grammar._replace(param="text.format")
        served.metrics.count_ignored_fields(body.ignored_fields)
        context = request_context(request.scope, body.priority, body.cache_salt, arrived_at_seconds)
        writer = ResponseWriter(body, chat, served, prepared.prompts[0])
        generation = generation_of(served, chat, prepared, context, writer.answer_id, grammar)
        return await run_generation(request, generation, writer, served.limits, is_stream=body.stream)

    return router


def _chat_of(body: ResponsesRequest) -> ChatRequest:
    """Return the equivalent chat request; its errors name the fields of `body`."""
    try:
        return ChatRequest.model_validate(body.as_chat())
    except ValidationError as error:
        raise _renamed(first_problem(error, body.as_chat()), body) from None


def _renamed(error: ApiError, body: ResponsesRequest) -> ApiError:
    """Return an error of the equivalent chat request with the field names of /v1/responses."""
    names = {"response_format": "text.format", "max_completion_tokens": "max_output_tokens", "messages": "input"}
    param = error.param or ""
    place = re.match(r"messages\[(\d+)\]", param)
    old = place[0] if place else next((name for name in names if param.startswith(name)), "")
    if not old:
        return error
    new = body.read_input.places[int(place[1])] if place else names[old]
    message = error.message.replace(f"`{old}", f"`{new}", 1)
    return ApiError(error.status, message, param=new + param.removeprefix(old), code=error.code)
