"""POST /api/chat and POST /api/generate."""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from msgspec import UNSET
from pydantic import ValidationError

from caravan.server.generation.context import key_name_of, request_context
from caravan.server.generation.generation import Generation
from caravan.server.generation.prompt_job import PromptJob
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.errors import ApiError, invalid
from caravan.server.http.json_response import json_response
from caravan.server.ollama.answers import Answer, AnswerMessage, OllamaChatAnswer, OllamaGenerateAnswer
from caravan.server.ollama.call_reading import CallReading
from caravan.server.ollama.documented import ollama_documented
from caravan.server.ollama.field_names import CHAT_NAMES, GENERATE_NAMES, renamed_error, renamed_warnings
from caravan.server.ollama.json_line import json_line
from caravan.server.ollama.line_writer import LineWriter, MakeAnswer, Part, now
from caravan.server.ollama.model_names import named_model
from caravan.server.ollama.requests import OllamaChatRequest, OllamaGenerateRequest
from caravan.server.openai.embeddings import NOTHING_DRAWN
from caravan.server.openai.preparation import generation_of, prepared_chat, prepared_completion
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.completions import CompletionRequest
from caravan.server.openai.protocol.strict_model import ignored_fields
from caravan.server.openai.protocol.validated_body import read_body
from caravan.server.openai.protocol.validation import first_problem
from caravan.server.openai.run_generation import read_whole, run_generation
from caravan.server.openai.template_messages import message_warnings
from caravan.server.openai.tool_calls.call_format import call_format_of

CHAT_EXAMPLE = {"model": "smollm2", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
GENERATE_EXAMPLE = {"model": "smollm2", "prompt": "Why is the sky blue?", "options": {"num_predict": 20}}

OllamaRequest = OllamaChatRequest | OllamaGenerateRequest
Wanted = TypeVar("Wanted", ChatRequest, CompletionRequest)


def generation_router(models: ServedModels) -> APIRouter:
    """Return the router of POST /api/chat and POST /api/generate."""
    router = APIRouter(tags=["ollama"])

    @router.post(
        "/api/chat",
        summary="Create a chat message, in Ollama's form",
        **ollama_documented(OllamaChatRequest, CHAT_EXAMPLE, answer=OllamaChatAnswer, is_streamed=True),
    )
    async def create_message(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, OllamaChatRequest, models.limits)
        served = named_model(models, body.model, request.scope)

        def make(part: Part) -> Answer:
            message = AnswerMessage(content=part.content)
            if part.thought:
                message.thinking = part.thought
            if part.calls:
                message.tool_calls = [*part.calls]
            return OllamaChatAnswer(model=body.model, created_at=now(), done=False, message=message)

        if not body.messages:
            return await _loaded(request, served, body, make, arrived_at_seconds)
        chat = await _read(request, served, ChatRequest, body.as_chat, _names(body))
        return await _answered(request, served, body, chat, make, arrived_at_seconds)

    @router.post(
        "/api/generate",
        summary="Create a text, in Ollama's form",
        **ollama_documented(OllamaGenerateRequest, GENERATE_EXAMPLE, answer=OllamaGenerateAnswer, is_streamed=True),
    )
    async def create_text(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, OllamaGenerateRequest, models.limits)
        served = named_model(models, body.model, request.scope)

        def make(part: Part) -> Answer:
            thought = part.thought or UNSET
            return OllamaGenerateAnswer(
                model=body.model, created_at=now(), done=False, response=part.content, thinking=thought
            )

        if not body.prompt:
            return await _loaded(request, served, body, make, arrived_at_seconds)
        wanted: ChatRequest | CompletionRequest
        if body.raw or served.chat_template is None:
            if body.system:
                raise invalid("This model has no chat template, which `system` needs.", "system")
            wanted = await _read(request, served, CompletionRequest, body.as_completion, _names(body))
        else:
            wanted = await _read(request, served, ChatRequest, body.as_chat, _names(body))
        return await _answered(request, served, body, wanted, make, arrived_at_seconds)

    return router


def _names(body: OllamaRequest) -> Mapping[str, str]:
    return CHAT_NAMES if isinstance(body, OllamaChatRequest) else GENERATE_NAMES


async def _read(
    request: Request,
    served: ServedModel,
    kind: type[Wanted],
    fields_of: Callable[[], dict[str, Any]],
    names: Mapping[str, str],
) -> Wanted:
    """Return the equivalent request, made in a thread, since a body may have megabytes; raises ApiError."""

    def read() -> Wanted:
        fields = fields_of()
        try:
            return kind.model_validate(fields)
        except ValidationError as error:
            raise renamed_error(first_problem(error, fields), names) from None

    return await served.executors.tokenizing.run(key_name_of(request.scope), read)


async def _answered(
    request: Request,
    served: ServedModel,
    body: OllamaRequest,
    wanted: ChatRequest | CompletionRequest,
    make: MakeAnswer,
    arrived_at_seconds: float,
) -> Response:
    """Return the response to the equivalent request, as lines or as one object."""
    served.metrics.count_ignored_fields(ignored_fields(body))
    warnings = [*body.warnings(), *wanted.warnings()]
    key_name = key_name_of(request.scope)
    try:
        if isinstance(wanted, ChatRequest):
            warnings += message_warnings(served, wanted)
            prepared = await prepared_chat(served, wanted, key_name, request.receive)
        else:
            prepared = await prepared_completion(served, wanted, key_name, request.receive)
        warnings += _limit_tokens(wanted, served, len(prepared.prompts[0]))
        has_tools = isinstance(wanted, ChatRequest) and bool(wanted.shown_tools)
        writer = LineWriter(
            make,
            served.tokenizer,
            CallReading(call_format_of(served.chat_template)) if has_tools else None,
            renamed_warnings(warnings),
            arrived_at_seconds,
            has_logprobs=body.logprobs,
            explain=body.explain,
        )
        grammar = prepared.grammar
        if grammar is not None:
            grammar = grammar._replace(param="format")
        context = request_context(request.scope, body.priority, body.cache_salt, arrived_at_seconds)
        generation = generation_of(served, wanted, prepared, context, writer.answer_id, grammar)
    except ApiError as error:
        raise renamed_error(error, _names(body)) from None
    return await run_generation(request, generation, writer, served.limits, is_stream=body.stream, form=writer.form)


def _limit_tokens(wanted: ChatRequest | CompletionRequest, served: ServedModel, num_prompt_tokens: int) -> list[str]:
    """Set the number of tokens to what fits, if it is greater or missing; return a warning if it was greater."""
    room = served.max_model_len - num_prompt_tokens
    asked = wanted.max_tokens
    if room < 1:
        wanted.max_tokens = None  # refused later, with the lengths
    elif asked is None or asked > room:
        wanted.max_tokens = room
    if asked is None or asked <= room or room < 1:
        return []
    return [f"`options.num_predict` is {asked}; the model's context leaves room for {room} tokens."]


async def _loaded(
    request: Request, served: ServedModel, body: OllamaRequest, make: MakeAnswer, arrived_at_seconds: float
) -> Response:
    """Return the response to a request without a prompt, when the model is loaded: one token has been computed."""
    if body.asks_to_unload:
        raise invalid(
            "`keep_alive` 0 without a prompt means to unload the model; here the server decides when models sleep "
            "(--sleep-after).",
            "keep_alive",
        )
    served.metrics.count_ignored_fields(ignored_fields(body))
    writer = LineWriter(
        make,
        served.tokenizer,
        None,
        body.warnings_without_prompt(),
        arrived_at_seconds,
        has_logprobs=False,
        explain=body.explain,
    )
    context = request_context(request.scope, body.priority, body.cache_salt, arrived_at_seconds)
    job = PromptJob(token_ids=[served.tokenizer.bos_token_id or 0], params=[NOTHING_DRAWN])
    generation = Generation(served, [job], context, answer_id=writer.answer_id)
    await read_whole(request, generation, lambda *_: None)
    answer = writer.loaded(generation)
    return Response(json_line(answer), media_type=writer.form.media_type) if body.stream else json_response(answer)
