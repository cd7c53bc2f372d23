"""POST /v1/responses; only responses in the background are kept, for a while."""

import re
import time
from functools import partial

from fastapi import APIRouter, Request, Response
from llguidance import LLMatcher
from pydantic import ValidationError

from caravan.server.generation.context import key_name_of, request_context
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.errors import ApiError, invalid
from caravan.server.http.openapi import documented
from caravan.server.openai.background import BackgroundResponse, open_background
from caravan.server.openai.models import chosen_model
from caravan.server.openai.preparation import generation_of, prepared_chat
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.response_object import ResponseObject
from caravan.server.openai.protocol.response_tools import EnforcedInputs, TextGrammar
from caravan.server.openai.protocol.responses import ResponsesRequest
from caravan.server.openai.protocol.validated_body import read_body
from caravan.server.openai.protocol.validation import first_problem
from caravan.server.openai.response_writer import ResponseWriter
from caravan.server.openai.run_generation import run_generation
from caravan.server.resumption.kept_responses import KeptResponses

EXAMPLE = {"model": "smollm2", "instructions": "Be brief.", "input": "What is the capital of France?"}


def responses_router(models: ServedModels, kept_responses: KeptResponses | None = None) -> APIRouter:
    """Return the router of POST /v1/responses; without `kept_responses` it rejects `background`."""
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
        inputs = body.enforced_inputs if chat.shown_tools else EnforcedInputs({}, [])
        try:
            await _check_formats(served, inputs, key_name)
            prepared = await prepared_chat(served, chat, key_name, request.receive, inputs.arguments)
        except ApiError as error:
            raise _renamed(error, body) from None
        grammar = prepared.grammar
        if grammar is not None and grammar.param == "response_format":
            grammar = grammar._replace(param="text.format")
        served.metrics.count_ignored_fields(body.ignored_fields)
        context = request_context(request.scope, body.priority, body.cache_salt, arrived_at_seconds)
        writer = ResponseWriter(body, chat, served, prepared.prompts[0])
        kept = open_background(kept_responses, request.scope) if body.background else None
        try:
            generation = generation_of(served, chat, prepared, context, writer.answer_id, grammar)
        except Exception:
            if kept is not None:
                kept.drop()
            raise
        if kept is not None:
            run = partial(run_generation, generation=generation, writer=writer, limits=served.limits, is_stream=True)
            return BackgroundResponse(kept, run, served.limits, writer.queued(), is_stream=body.stream)
        return await run_generation(request, generation, writer, served.limits, is_stream=body.stream)

    return router


async def _check_formats(served: ServedModel, inputs: EnforcedInputs, key_name: str) -> None:
    """Raise ApiError if a format that is not enforced is not even a grammar of the library."""
    for tool, _ in inputs.not_enforced:
        assert isinstance(tool.format, TextGrammar)
        made = LLMatcher.grammar_from_lark if tool.format.syntax == "lark" else LLMatcher.grammar_from_regex
        problem = await served.grammar_check.find_problem(made(tool.format.definition), key_name)
        if problem:
            raise invalid(f"`format` of the custom tool `{tool.name}` cannot be used: {problem}.", "tools")


def _chat_of(body: ResponsesRequest) -> ChatRequest:
    """Return the equivalent chat request; its errors name the fields of `body`."""
    _ = body.enforced_inputs  # a definition may be long: it is read here, not in the event loop
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
