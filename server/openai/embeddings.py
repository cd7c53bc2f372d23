"""POST /v1/embeddings: one vector for each text."""

import asyncio
import base64
import math
import secrets
import struct
import time
import uuid
from functools import partial
from typing import Any, ClassVar, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import Field

from caravan.model.sampling.sampling_params import Pooling, SamplingParams
from caravan.scheduler.messages import FinishReason, SequenceOutput
from caravan.scheduler.messages import Request as EngineRequest
from caravan.server.engine.output_queue import OutputQueue
from caravan.server.generation.context import RequestContext, request_context
from caravan.server.generation.errors import GenerationCancelled, GenerationFailed, failure_reason
from caravan.server.generation.request_timeline import RequestTimeline
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.time_limit import out_of_time, seconds_left
from caravan.server.http.disconnect import until_disconnect
from caravan.server.http.errors import invalid
from caravan.server.http.openapi import documented
from caravan.server.observe.request_end import RequestEnd
from caravan.server.observe.request_story import RequestStory
from caravan.server.openai.models import check_model
from caravan.server.openai.prompts import in_thread_if_long, prompt_tokens, too_long
from caravan.server.openai.protocol.answers import EmbeddingList
from caravan.server.openai.protocol.fields import PromptField
from caravan.server.openai.protocol.ignored_fields import ignored_fields, ignored_warnings
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import EMBEDDING
from caravan.server.openai.protocol.strict_model import StrictModel
from caravan.server.openai.protocol.validated_body import read_body

SUBMITTED_AT_ONCE = 64  # texts
MAX_INPUTS = 2048
EXAMPLE = {"model": "smollm2", "input": ["The sea is calm.", "The water lies still."]}
NOTHING_DRAWN = SamplingParams(seed=0, max_tokens=0)


class EmbeddingRequest(StrictModel):
    """The body of POST /v1/embeddings."""

    known_fields: ClassVar[KnownFields] = EMBEDDING

    model: str
    input: PromptField
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: of the numbers as little-endian float32, one behind the other."
    )
    dimensions: int | None = Field(None, ge=1, description="Only so many numbers, the first; the length is 1 again.")
    pooling: Pooling = Field("mean", description="Of the last hidden states: their mean, or the last one.")
    priority: int = Field(
        0, ge=-1000, le=1000, description="Within a key, requests of a lower number are served sooner."
    )
    cache_salt: str = Field("", max_length=256, description="Cached prefixes are shared within one salt only.")
    explain: bool = Field(False, description="The answer ends with what became of the request, moment by moment.")


def embeddings_router(served: ServedModel) -> APIRouter:
    """Return the route that makes vectors of texts."""
    router = APIRouter(tags=["generation"])

    @router.post(
        "/v1/embeddings",
        summary="Turn texts into vectors",
        **documented(EmbeddingRequest, EXAMPLE, answer=EmbeddingList),
    )
    async def create_embeddings(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, EmbeddingRequest, served.limits)
        check_model(served, body.model)
        if len(body.input) > MAX_INPUTS:
            raise invalid(f"`input` has {len(body.input)} texts; the limit is {MAX_INPUTS}.", "input")
        context = request_context(request.scope, body.priority, body.cache_salt)
        tokenizing = prompt_tokens(served, body.input, "input", context.key_name)
        prompts = await until_disconnect(request.receive, tokenizing)
        for prompt in prompts:
            if len(prompt) > served.max_model_len:
                raise too_long(served, f"{len(prompt)} tokens in `input`")
        story = RequestStory(f"embd-{uuid.uuid4().hex}", context.request_id, context.key_name, arrived_at_seconds)
        work = _vectors(served, prompts, body.pooling, context, story)
        try:
            async with asyncio.timeout(seconds_left(context, arrived_at_seconds)):
                vectors = await until_disconnect(request.receive, work)
        except TimeoutError:
            raise out_of_time(context) from None
        num_tokens = sum(map(len, prompts))
        served.metrics.count_usage(context.key_name, num_tokens, 0)
        num_numbers = sum(map(len, vectors))
        writing = partial(_all_written, vectors, body)
        written = await in_thread_if_long(served, context.key_name, num_numbers, writing)
        data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(written)]
        answer: dict[str, Any] = {"object": "list", "data": data, "model": body.model}
        answer |= {"usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens}}
        ignored = ignored_fields(body)
        served.metrics.count_ignored_fields(ignored)
        warnings = ignored_warnings(ignored)
        if warnings:
            answer["warnings"] = warnings
        if body.explain:
            answer["explanation"] = story.written()
        return Response(msgspec.json.encode(answer), media_type="application/json")

    return router


async def _vectors(
    served: ServedModel, prompts: list[list[int]], pooling: Pooling, context: RequestContext, story: RequestStory
) -> list[list[float]]:
    """Return the engine's vector of each prompt; on any end it works on none of them any more."""
    arrived_at_seconds = story.arrived_at_seconds
    story.tell("tokenized", prompt_tokens=[len(prompt) for prompt in prompts])
    reservations = served.admission.admit([(len(prompt), 0) for prompt in prompts], context, arrived_at_seconds)
    story.admit(reservations[0].predicted_wait_seconds)
    streams: list[OutputQueue] = []
    timelines = [
        RequestTimeline(
            metrics=served.metrics,
            admission=served.admission,
            reservation=reservation,
            num_prompt_tokens=len(prompt),
            max_tokens=0,
            arrived_at_seconds=arrived_at_seconds,
            queued_at_seconds=time.monotonic(),
        )
        for prompt, reservation in zip(prompts, reservations, strict=True)
    ]
    vectors = []
    reason_of_rest: FinishReason = "abort"

    def finish(stream: OutputQueue, timeline: RequestTimeline, reason: FinishReason) -> None:
        """Close what is kept of a prompt; only the first call counts."""
        timeline.finish(reason)
        served.stories.drop(stream.request_id, reason)

    exchange = secrets.randbits(63)
    try:
        for prompt, reservation in zip(prompts, reservations, strict=True):
            wanted = EngineRequest(
                prompt_token_ids=prompt,
                params=NOTHING_DRAWN,
                cache_salt=context.cache_salt,
                key=context.key_name,
                priority=context.priority,
                urgency=context.urgency,
                pooling=pooling,
            )
            streams.append(served.engine.submit(wanted, exchange))
            served.admission.submit(reservation, streams[-1].request_id)
            served.stories.queue(story, streams[-1].request_id, reservation.num_before)
            if len(streams) % SUBMITTED_AT_ONCE == 0:
                await asyncio.sleep(0)  # other requests have their turn
        served.stories.begin(story)
        served.metrics.observe_request(1)
        for stream, timeline in zip(streams, timelines, strict=True):
            try:
                output = await _end_of(stream)
            except Exception as error:
                reason_of_rest = failure_reason(error)
                raise
            finish(stream, timeline, "length")
            vectors.append(output.embedding)
    finally:
        left_seconds = seconds_left(context, arrived_at_seconds)
        story.is_out_of_time = left_seconds is not None and left_seconds <= 0
        for stream, timeline in zip(streams, timelines, strict=False):
            stream.abort()
            finish(stream, timeline, reason_of_rest)
        for reservation in reservations:  # of what was not submitted, too
            served.admission.leave(reservation, is_complete=False)
        context.on_end(RequestEnd(model_name=served.name, num_prompt_tokens=sum(map(len, prompts)), story=story))
    return vectors


async def _end_of(stream: OutputQueue) -> SequenceOutput:
    """Return the last output of a request; raises what ended it too early."""
    news = asyncio.Event()
    stream.on_news = news.set
    while True:
        output = stream.take()
        if output is not None and output.finish_reason is not None:
            break
        await news.wait()
        news.clear()
    if output.finish_reason == "error":
        raise GenerationFailed(output.error or "the engine gave no reason")
    if output.finish_reason == "abort":
        raise GenerationCancelled
    return output


def _all_written(vectors: list[list[float]], request: EmbeddingRequest) -> list[msgspec.Raw]:
    """Return each vector as JSON, made one at a time: Python's lock is held for no longer than one takes."""
    return [msgspec.Raw(msgspec.json.encode(_written(vector, request))) for vector in vectors]


def _written(vector: list[float], request: EmbeddingRequest) -> list[float] | str:
    """Return a vector of length 1 in the form that was asked for; both forms have the same numbers, in float32."""
    num = request.dimensions or len(vector)
    if num > len(vector):
        raise invalid(f"`dimensions` is {num}; vectors of this model have {len(vector)}.", "dimensions")
    length = math.sqrt(math.fsum(number * number for number in vector[:num])) or 1.0
    packed = struct.pack(f"<{num}f", *(number / length for number in vector[:num]))
    if request.encoding_format == "base64":
        return base64.b64encode(packed).decode()
    return list(struct.unpack(f"<{num}f", packed))
