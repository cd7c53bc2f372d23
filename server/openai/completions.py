"""POST /v1/completions."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.server.generation.context import key_name_of, request_context
from caravan.server.generation.served_models import ServedModels
from caravan.server.generation.text_stream import TextDelta
from caravan.server.http.openapi import documented
from caravan.server.openai.formatter import Formatter
from caravan.server.openai.logprobs import completion_logprobs, prompt_logprobs, token_id_logprobs
from caravan.server.openai.models import chosen_model
from caravan.server.openai.preparation import generation_of, prepared_completion
from caravan.server.openai.protocol.completions import Completion, CompletionChoice, CompletionRequest
from caravan.server.openai.protocol.strict_model import ignored_fields
from caravan.server.openai.protocol.validated_body import read_body
from caravan.server.openai.run_generation import run_generation

EXAMPLE = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 5, "temperature": 0}


class CompletionShape:
    """Writes the choices of a completion; a chunk has the same fields as a whole response."""

    id_prefix = "cmpl-"

    def __init__(self, request: CompletionRequest, tokenizer: Tokenizer) -> None:
        self._request = request
        self._tokenizer = tokenizer

    def opening(self, index: int) -> None:
        """Return None: a completion begins with its first text."""

    def chunk(self, index: int, delta: TextDelta) -> CompletionChoice:
        """Return a choice's part of one chunk."""
        return self._choice(index, delta, is_whole=False)

    def chunk_body(self, head: dict[str, Any], choices: list[CompletionChoice], fields: dict[str, Any]) -> Completion:
        """Return a chunk."""
        return Completion(**head, object="text_completion", choices=choices, **fields)

    def body(self, head: dict[str, Any], choices: list[TextDelta], fields: dict[str, Any]) -> Completion:
        """Return a whole response."""
        written = [self._choice(index, choice, is_whole=True) for index, choice in enumerate(choices)]
        return self.chunk_body(head, written, fields)

    def _choice(self, index: int, delta: TextDelta, *, is_whole: bool) -> CompletionChoice:
        request, tokenizer = self._request, self._tokenizer
        entries = delta.prompt_entries + delta.entries if request.echo else delta.entries
        num_logprobs = request.logprobs if entries or is_whole else None
        choice = CompletionChoice(
            index=index,
            text=delta.text,
            logprobs=None if num_logprobs is None else completion_logprobs(entries, tokenizer, num_logprobs),
            finish_reason=delta.finish_reason,
        )
        if delta.stop_reason:
            choice.stop_reason = "repetition"
        if request.return_token_ids:
            choice.token_ids = delta.token_ids
        if request.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs(delta.prompt_entries, tokenizer, request.prompt_logprobs)
        if delta.token_logprobs:
            choice.token_id_logprobs = token_id_logprobs(request.logprob_token_ids, delta.token_logprobs)
        return choice


def completions_router(models: ServedModels) -> APIRouter:
    """Return the router of POST /v1/completions."""
    router = APIRouter(tags=["generation"])

    @router.post(
        "/v1/completions",
        summary="Create a completion",
        **documented(CompletionRequest, EXAMPLE, answer=Completion, is_streamed=True),
    )
    async def create_completion(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, CompletionRequest, models.limits)
        served = chosen_model(models, body.model, request.scope)
        served.metrics.count_ignored_fields(ignored_fields(body))
        prepared = await prepared_completion(served, body, key_name_of(request.scope), request.receive)
        shape = CompletionShape(body, served.tokenizer)
        formatter = Formatter(body, prepared.prompts, shape)
        context = request_context(request.scope, body.priority, body.cache_salt, arrived_at_seconds)
        generation = generation_of(served, body, prepared, context, formatter.answer_id)
        return await run_generation(request, generation, formatter, served.limits, is_stream=body.stream)

    return router
