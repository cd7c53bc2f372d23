"""POST /v1/completions."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.server.generation.context import key_name_of, request_context
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.text_stream import TextPiece
from caravan.server.http.openapi import documented
from caravan.server.openai.formatter import GenerationResponse
from caravan.server.openai.logprobs import completion_logprobs, prompt_logprobs
from caravan.server.openai.models import check_model
from caravan.server.openai.preparation import prepared_completion
from caravan.server.openai.protocol.answers import Completion
from caravan.server.openai.protocol.generation_requests import CompletionRequest
from caravan.server.openai.protocol.ignored_fields import ignored_fields
from caravan.server.openai.protocol.validated_body import read_body

EXAMPLE = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 5, "temperature": 0}


class CompletionShape:
    """How a completion's choice is written; a chunk has the same form as the whole."""

    id_prefix = "cmpl-"
    object_name = "text_completion"
    chunk_object_name = "text_completion"

    def __init__(self, request: CompletionRequest, tokenizer: Tokenizer) -> None:
        self._request = request
        self._tokenizer = tokenizer

    def whole(self, index: int, choice: TextPiece) -> dict[str, Any]:
        """Return a finished choice."""
        return self._choice(index, choice, is_whole=True)

    def chunk(self, index: int, piece: TextPiece) -> dict[str, Any]:
        """Return a choice's share of one chunk."""
        return self._choice(index, piece, is_whole=False)

    def _choice(self, index: int, piece: TextPiece, *, is_whole: bool) -> dict[str, Any]:
        entries = piece.prompt_entries + piece.entries if self._request.echo else piece.entries
        num_logprobs = self._request.logprobs if entries or is_whole else None
        choice: dict[str, Any] = {
            "index": index,
            "text": piece.text,
            "logprobs": None if num_logprobs is None else completion_logprobs(entries, self._tokenizer, num_logprobs),
            "finish_reason": piece.finish_reason,
        }
        if self._request.return_token_ids:
            choice["token_ids"] = piece.token_ids
        num_of_prompt = self._request.prompt_logprobs
        if num_of_prompt is not None:
            choice["prompt_logprobs"] = prompt_logprobs(piece.prompt_entries, self._tokenizer, num_of_prompt)
        return choice

    def opening(self, index: int) -> None:
        """A completion begins with its first text."""


def completions_router(served: ServedModel) -> APIRouter:
    """Return the route that continues prompts."""
    router = APIRouter(tags=["generation"])

    @router.post(
        "/v1/completions",
        summary="Continue a prompt",
        **documented(CompletionRequest, EXAMPLE, answer=Completion, is_streamed=True),
    )
    async def create_completion(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, CompletionRequest, served.limits)
        check_model(served, body.model)
        served.metrics.count_ignored_fields(ignored_fields(body))
        prepared = await prepared_completion(served, body, key_name_of(request.scope), request.receive)
        shape = CompletionShape(body, served.tokenizer)
        context = request_context(request.scope, body.priority, body.cache_salt)
        answer = GenerationResponse(
            served,
            body,
            prepared.prompts,
            shape,
            prompt_texts=prepared.prompt_texts,
            grammar=prepared.grammar,
            context=context,
            arrived_at_seconds=arrived_at_seconds,
        )
        return await answer.respond(request)

    return router
