"""POST /v1/messages and /v1/messages/count_tokens, and HEAD /api/hello, which Claude Code sends first."""

import re
import time
from typing import TypeVar

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from caravan.server.generation.context import key_name_of, request_context
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.errors import ApiError
from caravan.server.http.json_response import json_response
from caravan.server.http.openapi import documented, errors
from caravan.server.messages.chat_request import FORMAT, EquivalentChat, equivalent_chat
from caravan.server.messages.error_form import MESSAGES_PATH
from caravan.server.messages.protocol.answer import MessageErrorBody, MessageObject, TokenCount
from caravan.server.messages.protocol.request import CountTokensRequest, MessagesRequest, PromptBody
from caravan.server.messages.writer import MessageWriter
from caravan.server.openai.models import chosen_model
from caravan.server.openai.preparation import generation_of, prepared_chat
from caravan.server.openai.prompts import chat_prompt, too_long
from caravan.server.openai.protocol.validated_body import read_body
from caravan.server.openai.run_generation import run_generation

COUNT_PATH = f"{MESSAGES_PATH}/count_tokens"
HELLO_PATH = "/api/hello"
EXAMPLE = {
    "model": "smollm2",
    "max_tokens": 20,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}
COUNT_EXAMPLE = {name: value for name, value in EXAMPLE.items() if name != "max_tokens"}
_BETA_HEADER = "anthropic-beta"
Body = TypeVar("Body", bound=PromptBody)
_NUM_TOKENS = re.compile(r"(\d+) tokens in")  # in the message of an error about the length of a prompt


def messages_router(models: ServedModels) -> APIRouter:
    """Return the router of Anthropic's API."""
    router = APIRouter(tags=["generation"])

    @router.post(
        MESSAGES_PATH,
        summary="Create a message",
        **documented(MessagesRequest, EXAMPLE, answer=MessageObject, is_streamed=True, error=MessageErrorBody),
    )
    async def create_message(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await _read(request, MessagesRequest, models.limits)
        served = chosen_model(models, body.model, request.scope)
        chat, warnings = await _chat_of(request, served, body)
        try:
            prepared = await prepared_chat(served, chat.request, key_name_of(request.scope), request.receive)
        except ApiError as error:
            raise _too_long(served, error) or chat.renamed(error) from None
        (prompt,) = prepared.prompts
        room = served.max_model_len - len(prompt)
        if room < 1:
            raise prompt_too_long(len(prompt), served.max_model_len)
        chat.request.max_completion_tokens = min(body.max_tokens, room)
        if body.max_tokens > room:
            warnings.append(f"`max_tokens` is limited to {room}, the room that the prompt leaves in the context.")
        grammar = prepared.grammar
        if grammar is not None and grammar.param == "response_format":
            grammar = grammar._replace(param=FORMAT)
        context = request_context(request.scope, body.priority, body.cache_salt, arrived_at_seconds)
        writer = MessageWriter(body, chat.request, served, prompt, warnings, fills_context=body.max_tokens > room)
        try:
            generation = generation_of(served, chat.request, prepared, context, writer.answer_id, grammar)
        except ApiError as error:
            raise chat.renamed(error) from None
        return await run_generation(request, generation, writer, served.limits, is_stream=body.stream)

    @router.post(
        COUNT_PATH,
        summary="Count the tokens of a conversation",
        **documented(CountTokensRequest, COUNT_EXAMPLE, answer=TokenCount, error=MessageErrorBody),
    )
    async def count_tokens(request: Request) -> Response:
        body = await _read(request, CountTokensRequest, models.limits)
        served = chosen_model(models, body.model, request.scope)
        chat, warnings = await _chat_of(request, served, body)
        max_tokens = max(served.max_model_len, served.limits.max_shown_tokens)
        try:
            prompt = await chat_prompt(served, chat.request, key_name_of(request.scope), max_tokens)
        except ApiError as error:
            raise chat.renamed(error) from None
        if len(prompt) > max_tokens:
            raise too_long(served, f"{len(prompt)} tokens in `messages`", max_tokens)
        return json_response(TokenCount(input_tokens=len(prompt), warnings=warnings or UNSET))

    @router.head(
        HELLO_PATH, summary="Answer Claude Code's first request", response_class=Response, responses=errors(401)
    )
    async def hello() -> Response:
        return Response()

    return router


async def _chat_of(request: Request, served: ServedModel, body: PromptBody) -> tuple[EquivalentChat, list[str]]:
    """Return the equivalent chat and the warnings about the request; counts what has no effect."""

    def make() -> tuple[EquivalentChat, list[str]]:
        chat = equivalent_chat(served, body)
        return chat, chat.warnings(served)

    # In a thread, as a body may have megabytes.
    chat, warnings = await served.executors.tokenizing.run(key_name_of(request.scope), make)
    served.metrics.count_ignored_fields(chat.ignored)
    if _BETA_HEADER in request.headers:
        warnings.append(f"The header `{_BETA_HEADER}` has no effect on this server.")
    return chat, warnings


async def _read(request: Request, schema: type[Body], limits: RequestLimits) -> Body:
    """Return the body of a request; raises ApiError."""
    try:
        return await read_body(request, schema, limits)
    except ApiError as error:
        if error.param == "thread":  # the client then sends the whole conversation
            error.details = {"details": {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}}
        raise


def prompt_too_long(num_tokens: int, max_model_len: int) -> ApiError:
    """Return the error of a prompt that leaves no room for a token, in the words that clients look for."""
    message = f"prompt is too long: {num_tokens} tokens > {max_model_len - 1} maximum"
    return ApiError(400, message, code="context_length_exceeded")


def _too_long(served: ServedModel, error: ApiError) -> ApiError | None:
    """Return the error of a prompt that is so long that it was not encoded as a whole; None for another error."""
    found = _NUM_TOKENS.search(error.message) if error.code == "context_length_exceeded" else None
    return None if found is None else prompt_too_long(int(found[1]), served.max_model_len)
