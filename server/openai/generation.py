"""Generation: the choices of one HTTP request while the engine produces them."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from model.detokenizer import Detokenizer
from model.sampling_params import SamplingParams
from server.request_timeline import RequestTimeline
from server.served_model import ServedModel
from server.stop_strings import StopStrings
from server.text_stream import TextPiece, TextStream, join_pieces

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class PromptJob:
    """One prompt with the parameters of each of its choices."""

    token_ids: list[int]
    params: list[SamplingParams]


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """What ends a choice beside the engine's own reasons."""

    strings: StopStrings
    include_match: bool
    min_tokens: int


class Generation:
    """All choices of a request, running. Choice index is prompt index times n plus the choice of that prompt.

    Whoever makes one calls `end` when it is no longer read, in every case; the engine then stops working on it.
    """

    def __init__(
        self,
        served: ServedModel,
        jobs: Sequence[PromptJob],
        stop: StopRule,
        *,
        arrived_at_seconds: float,
        cache_salt: str = "",
    ) -> None:
        """Submit all choices; raises EngineUnavailable, and then none of them runs."""
        self._jobs = jobs
        self._choices: list[_Choice] = []
        try:
            for job in jobs:
                for params in job.params:
                    self._choices.append(_submit(served, job, params, stop, arrived_at_seconds, cache_salt))
        except BaseException:
            self.end()
            raise
        served.metrics.observe_request(len(jobs[0].params))

    def __len__(self) -> int:
        return len(self._choices)

    async def pieces(self) -> AsyncGenerator[tuple[int, TextPiece], None]:
        """Yield (choice index, piece) as they come, until all choices have ended."""
        async with aclosing(interleave(self._choices)) as merged:
            async for index, piece in merged:
                yield index, piece

    async def whole_choices(self) -> list[TextPiece]:
        """Return each choice as one piece, when all have ended."""
        gathered: list[list[TextPiece]] = [[] for _ in self._choices]
        async with aclosing(self.pieces()) as pieces:
            async for index, piece in pieces:
                gathered[index].append(piece)
        return [join_pieces(pieces_of_choice) for pieces_of_choice in gathered]

    def end(self) -> None:
        """Stop the engine's work on what has not ended yet."""
        for choice in self._choices:
            choice.end()

    def usage(self) -> dict[str, Any]:
        """Return the token counts so far: each prompt once, and all tokens produced."""
        num_prompt_tokens = sum(len(job.token_ids) for job in self._jobs)
        num_completion_tokens = sum(choice.num_tokens for choice in self._choices)
        return {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_completion_tokens,
            "total_tokens": num_prompt_tokens + num_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self._num_cached_tokens()},
        }

    def _num_cached_tokens(self) -> int:
        """Count the prompt tokens found in the cache; the choices of a prompt find those of the first one, too."""
        num_cached = 0
        start = 0
        for job in self._jobs:
            choices = self._choices[start : start + len(job.params)]
            num_cached += min(choice.num_cached_tokens or 0 for choice in choices)
            start += len(choices)
        return num_cached


class _Choice:
    """One choice, counted and timed while it is read."""

    def __init__(self, stream: TextStream, timeline: RequestTimeline) -> None:
        self.num_tokens = 0
        self.num_cached_tokens: int | None = None  # None: nothing has come yet
        self._stream = stream
        self._timeline = timeline

    def __aiter__(self) -> "_Choice":
        return self

    async def __anext__(self) -> TextPiece:
        try:
            piece = await anext(self._stream)
        except StopAsyncIteration:
            raise
        except Exception:
            self._timeline.finish("error")
            raise
        if self.num_cached_tokens is None:
            self.num_cached_tokens = piece.num_cached_tokens
        self.num_tokens += len(piece.token_ids)
        self._timeline.on_tokens(len(piece.token_ids), piece.received_at_seconds, piece.scheduled_at_seconds)
        if piece.finish_reason is not None:
            self._timeline.finish(piece.finish_reason)
        return piece

    def end(self) -> None:
        self._stream.abort()
        self._timeline.finish("abort")


async def interleave(streams: Sequence[AsyncIterator[Item]]) -> AsyncGenerator[tuple[int, Item], None]:
    """Yield (index of the stream, item) as items come; the first stream that raises ends it.

    A stream is read on only when its item has been taken, so that what comes meanwhile can gather at its source.
    """
    if len(streams) == 1:  # the usual case needs no task
        async for item in streams[0]:
            yield 0, item
        return
    queue: asyncio.Queue[tuple[int, Item] | Exception | None] = asyncio.Queue(maxsize=1)
    tasks = [asyncio.create_task(_pump(index, stream, queue)) for index, stream in enumerate(streams)]
    try:
        num_open = len(streams)
        while num_open:
            news = await queue.get()
            if news is None:
                num_open -= 1
            elif isinstance(news, Exception):
                raise news
            else:
                yield news
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    index: int, stream: AsyncIterator[Item], queue: "asyncio.Queue[tuple[int, Item] | Exception | None]"
) -> None:
    try:
        async for item in stream:
            await queue.put((index, item))
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)


def _submit(
    served: ServedModel,
    job: PromptJob,
    params: SamplingParams,
    stop: StopRule,
    arrived_at_seconds: float,
    cache_salt: str,
) -> _Choice:
    tokens = served.engine.submit(job.token_ids, params, cache_salt)
    stream = TextStream(
        tokens,
        Detokenizer(served.tokenizer),
        stop.strings,
        include_stop_string=stop.include_match,
        min_tokens=stop.min_tokens,
    )
    timeline = RequestTimeline(
        metrics=served.metrics,
        num_prompt_tokens=len(job.token_ids),
        max_tokens=params.max_tokens,
        arrived_at_seconds=arrived_at_seconds,
        queued_at_seconds=time.monotonic(),
    )
    return _Choice(stream, timeline)
