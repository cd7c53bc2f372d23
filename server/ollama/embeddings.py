"""POST /api/embed, and POST /api/embeddings, its older form."""

import time
import uuid
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from caravan.server.generation.context import request_context
from caravan.server.generation.generation import Generation
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.errors import ApiError
from caravan.server.http.json_response import json_response
from caravan.server.ollama.answers import OllamaEmbedAnswer, OllamaEmbeddingAnswer
from caravan.server.ollama.documented import ollama_documented
from caravan.server.ollama.field_names import EMBEDDING_NAMES, renamed_error
from caravan.server.ollama.line_writer import nanoseconds_since, of_milliseconds
from caravan.server.ollama.model_names import named_model
from caravan.server.ollama.requests import OllamaEmbeddingRequest, OllamaEmbedRequest
from caravan.server.openai.embeddings import written_vectors
from caravan.server.openai.protocol.embeddings import EmbeddingRequest
from caravan.server.openai.protocol.strict_model import ignored_fields, ignored_warnings
from caravan.server.openai.protocol.validated_body import read_body

EMBED_EXAMPLE = {"model": "smollm2", "input": ["The sea is calm.", "The water lies still."]}
EMBEDDING_EXAMPLE = {"model": "smollm2", "prompt": "The sea is calm."}


def ollama_embeddings_router(models: ServedModels) -> APIRouter:
    """Return the router of POST /api/embed and POST /api/embeddings."""
    router = APIRouter(tags=["ollama"])

    @router.post(
        "/api/embed",
        summary="Create embeddings, in Ollama's form",
        **ollama_documented(OllamaEmbedRequest, EMBED_EXAMPLE, answer=OllamaEmbedAnswer),
    )
    async def embed(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, OllamaEmbedRequest, models.limits)
        fields = {"input": body.input, "dimensions": body.dimensions}
        vectors, generation, warnings = await _embedded(request, models, body, fields, arrived_at_seconds)
        record = generation.record
        return json_response(
            OllamaEmbedAnswer(
                model=body.model,
                embeddings=vectors,
                total_duration=nanoseconds_since(arrived_at_seconds),
                load_duration=of_milliseconds(record.timings()["queue_ms"]),
                prompt_eval_count=record.num_prompt_tokens,
                warnings=warnings or UNSET,
                explanation=record.explanation() if body.explain else UNSET,
            )
        )

    @router.post(
        "/api/embeddings",
        summary="Create an embedding, in Ollama's older form",
        **ollama_documented(OllamaEmbeddingRequest, EMBEDDING_EXAMPLE, answer=OllamaEmbeddingAnswer),
    )
    async def embed_prompt(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, OllamaEmbeddingRequest, models.limits)
        fields = {"input": [body.prompt]}
        try:
            (vector,), generation, warnings = await _embedded(request, models, body, fields, arrived_at_seconds)
        except ApiError as error:
            raise renamed_error(error, EMBEDDING_NAMES) from None
        return json_response(
            OllamaEmbeddingAnswer(
                embedding=vector,
                warnings=warnings or UNSET,
                explanation=generation.record.explanation() if body.explain else UNSET,
            )
        )

    return router


async def _embedded(
    request: Request,
    models: ServedModels,
    body: OllamaEmbedRequest | OllamaEmbeddingRequest,
    fields: dict[str, Any],
    arrived_at_seconds: float,
) -> tuple[list[msgspec.Raw], Generation, list[str]]:
    """Return the vectors as JSON, the generation, which has ended, and the warnings; raises ApiError.

    `fields` are those of the equivalent request of /v1/embeddings.
    """
    served = named_model(models, body.model, request.scope)
    context = request_context(request.scope, body.priority, body.cache_salt, arrived_at_seconds)
    wanted = EmbeddingRequest.model_validate({"model": body.model} | fields)
    vectors, generation = await written_vectors(request, served, wanted, context, f"ollama-{uuid.uuid4().hex}")
    ignored = ignored_fields(body)
    served.metrics.count_ignored_fields(ignored)
    return vectors, generation, ignored_warnings(ignored)
