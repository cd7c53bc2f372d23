"""POST /v1/embeddings: one vector for each text."""

import base64
import math
import struct
import time
import uuid
from collections.abc import Sequence
from functools import partial

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.server.generation.context import RequestContext, request_context
from caravan.server.generation.generation import Generation
from caravan.server.generation.prompt_job import PromptJob
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.served_models import ServedModels
from caravan.server.generation.text_stream import TextDelta
from caravan.server.http.disconnect import until_disconnect
from caravan.server.http.errors import invalid
from caravan.server.http.json_response import json_response
from caravan.server.http.openapi import documented
from caravan.server.openai.models import chosen_model
from caravan.server.openai.prompts import in_thread_if_long, prompt_tokens, too_long
from caravan.server.openai.protocol.embeddings import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from caravan.server.openai.protocol.strict_model import ignored_fields, ignored_warnings
from caravan.server.openai.protocol.validated_body import read_body
from caravan.server.openai.run_generation import read_whole

MAX_INPUTS = 2048
EXAMPLE = {"model": "smollm2", "input": ["The sea is calm.", "The water lies still."]}
NOTHING_DRAWN = SamplingParams(seed=0, max_tokens=0)


def embeddings_router(models: ServedModels) -> APIRouter:
    """Return the router of POST /v1/embeddings."""
    router = APIRouter(tags=["generation"])

    @router.post(
        "/v1/embeddings",
        summary="Create embeddings",
        **documented(EmbeddingRequest, EXAMPLE, answer=EmbeddingList),
    )
    async def create_embeddings(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, EmbeddingRequest, models.limits)
        served = chosen_model(models, body.model, request.scope)
        context = request_context(request.scope, body.priority, body.cache_salt, arrived_at_seconds)
        written, generation = await written_vectors(request, served, body, context, f"embd-{uuid.uuid4().hex}")
        ignored = ignored_fields(body)
        served.metrics.count_ignored_fields(ignored)
        num_tokens = generation.record.num_prompt_tokens
        return json_response(
            EmbeddingList(
                data=[Embedding(index=index, embedding=one) for index, one in enumerate(written)],
                model=body.model,
                usage=EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
                warnings=ignored_warnings(ignored) or UNSET,
                explanation=generation.record.explanation() if body.explain else UNSET,
            )
        )

    return router


async def written_vectors(
    request: Request, served: ServedModel, body: EmbeddingRequest, context: RequestContext, answer_id: str
) -> tuple[list[msgspec.Raw], Generation]:
    """Return the vector of each input as JSON, and the generation, which has ended."""
    if len(body.input) > MAX_INPUTS:
        raise invalid(f"`input` has {len(body.input)} texts; the limit is {MAX_INPUTS}.", "input")
    tokenizing = prompt_tokens(served, body.input, "input", context.key_name)
    prompts = await until_disconnect(request.receive, tokenizing)
    for prompt in prompts:
        if len(prompt) > served.max_model_len:
            raise too_long(served, f"{len(prompt)} tokens in `input`")
    jobs = [PromptJob(token_ids=prompt, params=[NOTHING_DRAWN], pooling=body.pooling) for prompt in prompts]
    generation = Generation(served, jobs, context, answer_id=answer_id)
    vectors: list[Sequence[float]] = [()] * len(prompts)

    def add(index: int, delta: TextDelta) -> None:
        vectors[index] = delta.embedding

    await read_whole(request, generation, add)
    writing = partial(_all_written, vectors, body)
    return await in_thread_if_long(served, context.key_name, sum(map(len, vectors)), writing), generation


def _all_written(vectors: Sequence[Sequence[float]], request: EmbeddingRequest) -> list[msgspec.Raw]:
    """Return each vector as JSON; the GIL is held for one vector at a time."""
    return [msgspec.Raw(msgspec.json.encode(_written(vector, request))) for vector in vectors]


def _written(vector: Sequence[float], request: EmbeddingRequest) -> list[float] | str:
    """Return a vector of length 1 in the requested encoding; both encodings have the same float32 numbers."""
    num = request.dimensions or len(vector)
    if num > len(vector):
        raise invalid(f"`dimensions` is {num}; vectors of this model have {len(vector)}.", "dimensions")
    length = math.sqrt(math.fsum(number * number for number in vector[:num])) or 1.0
    packed = struct.pack(f"<{num}f", *(number / length for number in vector[:num]))
    if request.encoding_format == "base64":
        return base64.b64encode(packed).decode()
    return list(struct.unpack(f"<{num}f", packed))
