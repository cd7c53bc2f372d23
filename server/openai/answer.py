"""Answer: what completions and chat have in common from the first token to the last byte."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

import msgspec
from fastapi import Request, Response

from server.disconnect import until_disconnect
from server.openai.errors import as_api_error
from server.openai.generation import Generation, PromptJob, StopRule
from server.openai.prompts import num_tokens_to_produce
from server.openai.sampling import check_sampling, sampling_params
from server.openai.schemas import ChatRequest, CompletionRequest
from server.openai.sse import DONE, EventStream, event
from server.served_model import ServedModel
from server.stop_strings import StopStrings
from server.text_stream import TextPiece

Pieces = AsyncGenerator[tuple[int, TextPiece], None]


class Shape(Protocol):
    """How one of the two kinds of request writes its choices."""

    id_prefix: str
    object_name: str
    chunk_object_name: str

    def whole(self, index: int, choice: TextPiece) -> dict[str, Any]:
        """Return a finished choice."""

    def chunk(self, index: int, piece: TextPiece) -> dict[str, Any]:
        """Return a choice's share of one chunk."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the share that comes before the first text, if there is one."""


class Answer:
    """The answer to one request, as one JSON object or as a stream of chunks."""

    def __init__(
        self,
        served: ServedModel,
        request: CompletionRequest | ChatRequest,
        prompts: list[list[int]],
        shape: Shape,
        *,
        arrived_at_seconds: float,
    ) -> None:
        """Submit the prompts to the engine; raises ApiError or EngineUnavailable before anything runs."""
        self._served = served
        self._request = request
        self._prompts = prompts
        self._shape = shape
        self._id = shape.id_prefix + uuid.uuid4().hex
        self._created = int(time.time())
        check_sampling(request, served.tokenizer.vocab_size)
        jobs = [
            PromptJob(
                token_ids=prompt,
                params=sampling_params(
                    request,
                    num_tokens_to_produce(served, request, len(prompt)),
                    served.tokenizer.eos_token_ids,
                    served.defaults,
                ),
            )
            for prompt in prompts
        ]
        stop = StopRule(
            strings=StopStrings(request.stop),
            include_match=request.include_stop_str_in_output,
            min_tokens=request.min_tokens,
        )
        self._generation = Generation(
            served, jobs, stop, arrived_at_seconds=arrived_at_seconds, cache_salt=request.cache_salt
        )

    async def respond(self, request: Request) -> Response:
        """Return the HTTP answer; nothing is sent before the engine's first output, so that it may still be an error.

        If the client goes away, the engine stops working on it.
        """
        is_handed_over = False
        try:
            if not self._request.stream:
                choices = await until_disconnect(request.receive, self._generation.whole_choices())
                return Response(msgspec.json.encode(self._whole(choices)), media_type="application/json")
            pieces = self._generation.pieces()
            first = await until_disconnect(request.receive, anext(pieces))
            is_handed_over = True
            return EventStream(
                self._events(first, pieces),
                write_timeout_seconds=self._served.limits.write_timeout_seconds,
                on_end=self._generation.end,
            )
        finally:
            if not is_handed_over:
                self._generation.end()

    def _whole(self, choices: list[TextPiece]) -> dict[str, Any]:
        written = [self._shape.whole(index, choice) for index, choice in enumerate(choices)]
        return {
            **self._head(self._shape.object_name),
            "choices": written,
            "usage": self._generation.usage(),
            **self._remarks(),
        }

    async def _events(self, first: tuple[int, TextPiece], rest: Pieces) -> AsyncGenerator[bytes, None]:
        """Yield the events of a stream; an error becomes an event, too, since the status is already sent."""
        head = self._head(self._shape.chunk_object_name)
        try:
            async with aclosing(self._chunk_choices(first, rest)) as chunk_choices:
                remarks = self._remarks()  # in the first chunk only
                async for choice in chunk_choices:
                    yield event({**head, "choices": [choice], **remarks})
                    remarks = {}
            if self._request.include_usage:
                yield event({**head, "choices": [], "usage": self._generation.usage()})
        except Exception as error:
            yield event(as_api_error(error).body())
        yield DONE

    async def _chunk_choices(self, first: tuple[int, TextPiece], rest: Pieces) -> AsyncGenerator[dict[str, Any], None]:
        opened: set[int] = set()
        async with aclosing(_chain(first, rest)) as pieces:
            async for index, piece in pieces:
                if index not in opened:
                    opened.add(index)
                    opening = self._shape.opening(index)
                    if opening is not None:
                        yield opening
                if piece.text or piece.entries or piece.finish_reason or self._request.return_token_ids:
                    yield self._shape.chunk(index, piece)

    def _head(self, object_name: str) -> dict[str, Any]:
        return {"id": self._id, "object": object_name, "created": self._created, "model": self._request.model}

    def _remarks(self) -> dict[str, Any]:
        remarks: dict[str, Any] = {}
        warnings = self._request.warnings()
        if warnings:
            remarks["warnings"] = warnings
        if self._request.return_token_ids:
            remarks["prompt_token_ids"] = self._prompts if len(self._prompts) > 1 else self._prompts[0]
        return remarks


async def _chain(first: tuple[int, TextPiece], rest: Pieces) -> Pieces:
    async with aclosing(rest):
        yield first
        async for item in rest:
            yield item
