"""Generation: the choices of one HTTP request while the engine produces them."""

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.model.tokenizer.detokenizer import Detokenizer
from caravan.scheduler.messages import FinishReason, Request
from caravan.server.engine.output_queue import OutputQueue
from caravan.server.generation.admission import Reservation
from caravan.server.generation.context import RequestContext
from caravan.server.generation.errors import InvalidGrammar, failure_reason
from caravan.server.generation.request_grammar import RequestGrammar
from caravan.server.generation.request_timeline import RequestTimeline
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.stop_strings import StopStrings
from caravan.server.generation.text_stream import ShownPrompt, TextPiece, TextStream, join_pieces
from caravan.server.generation.time_limit import out_of_time, seconds_left
from caravan.server.observe.request_end import RequestEnd
from caravan.server.observe.request_history import StoryBook
from caravan.server.observe.request_story import RequestStory


@dataclass(frozen=True, kw_only=True)
class PromptJob:
    """One prompt with the parameters of each of its choices."""

    token_ids: list[int]
    params: list[SamplingParams]
    shown: ShownPrompt | None = None  # what the answer repeats of it, and tells


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
        grammar: RequestGrammar | None = None,
        context: RequestContext = RequestContext(),  # frozen
        answer_id: str = "",
    ) -> None:
        """Submit all choices; raises EngineUnavailable, or ApiError if there is no room, and then none of them runs."""
        self._served = served
        self._context = context
        self._is_counted = False
        self._jobs = jobs
        self._grammar = grammar
        self._has_news = False  # some choice has something to take
        self._waiter: asyncio.Future[None] | None = None  # whoever waits for that
        self._failure: Exception | None = None  # came together with pieces, which are handed out first
        self._choices: list[_Choice] = []
        self._num_open = sum(len(job.params) for job in jobs)  # choices whose last piece is still to come
        lengths = [(len(job.token_ids), params.max_tokens) for job in jobs for params in job.params]
        self.story = RequestStory(answer_id, context.request_id, context.key_name, arrived_at_seconds)
        self.story.tell("tokenized", prompt_tokens=[len(job.token_ids) for job in jobs])
        self._reservations = served.admission.admit(lengths, context, arrived_at_seconds)
        self.story.admit(self._reservations[0].predicted_wait_seconds)
        self._time_limit: asyncio.TimerHandle | None = None
        left_seconds = seconds_left(context, arrived_at_seconds)
        if left_seconds is not None:
            self._time_limit = asyncio.get_running_loop().call_later(left_seconds, self._expire)
        reservations = iter(self._reservations)
        exchange = secrets.randbits(63)
        text = grammar.text if grammar is not None else ""
        try:
            for job in jobs:
                group = secrets.randbits(63) if len(job.params) > 1 else 0
                for params in job.params:
                    request = Request(
                        prompt_token_ids=job.token_ids,
                        params=params,
                        cache_salt=context.cache_salt,
                        key=context.key_name,
                        priority=context.priority,
                        urgency=context.urgency,
                        grammar=text,
                        group=group,
                    )
                    tokens = served.engine.submit(request, exchange)
                    tokens.on_news = self._on_news
                    reservation = next(reservations)
                    choice = _choice_of(tokens, served, job, params, stop, reservation, arrived_at_seconds)
                    self._choices.append(choice)
                    served.admission.submit(reservation, tokens.request_id)
                    served.stories.queue(self.story, tokens.request_id, reservation.num_before)
        except BaseException:
            self.end()
            raise
        served.stories.begin(self.story)
        served.metrics.observe_request(len(jobs[0].params))

    @property
    def is_finished(self) -> bool:
        """The last piece of every choice was returned."""
        return self._num_open == 0

    async def next_pieces(self) -> list[tuple[int, TextPiece]]:
        """Wait for what comes next and return it as (choice index, piece), at least one; raises what ended a choice.

        What comes while this is not called gathers at its source.
        """
        pieces: list[tuple[int, TextPiece]] = []
        while not pieces:
            if self._failure is not None:
                raise self._failure
            if not self._has_news:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            self._has_news = False
            try:
                for index, choice in enumerate(self._choices):
                    piece = choice.take()
                    if piece is not None:
                        pieces.append((index, piece))
                    if piece is not None and piece.finish_reason is not None:
                        self._num_open -= 1
            except InvalidGrammar as error:
                assert self._grammar is not None, "only a grammar can be invalid"
                self._failure = InvalidGrammar(str(error), self._grammar.param)
            except Exception as error:
                self._failure = error
        return pieces

    def _expire(self) -> None:
        """End what takes too long for its client."""
        self.story.is_out_of_time = True
        self._failure = out_of_time(self._context)
        self._on_news()

    def _on_news(self) -> None:
        """Wake whoever waits. An asyncio.Event would do, at several times the price, once for each token."""
        self._has_news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def whole_choices(self) -> list[TextPiece]:
        """Return each choice as one piece, when all have ended."""
        gathered: list[list[TextPiece]] = [[] for _ in self._choices]
        while not self.is_finished:
            for index, piece in await self.next_pieces():
                gathered[index].append(piece)
        return [join_pieces(pieces_of_choice) for pieces_of_choice in gathered]

    def end(self) -> None:
        """Stop the engine's work on what has not ended yet."""
        if self._time_limit is not None:
            self._time_limit.cancel()
        failure = None if self.story.is_out_of_time else self._failure
        reason: FinishReason = "abort" if failure is None else failure_reason(failure)
        for choice in self._choices:
            choice.end(reason)
        for reservation in self._reservations:  # of what was not submitted, too
            self._served.admission.leave(reservation, is_complete=False)
        if self._choices and not self._is_counted:
            self._is_counted = True
            usage = self.usage()
            counts = usage["prompt_tokens"], usage["completion_tokens"]
            self._served.metrics.count_usage(self._context.key_name, *counts)
            self._context.on_end(
                RequestEnd(
                    model_name=self._served.name,
                    params=self._jobs[0].params[0],
                    num_prompt_tokens=counts[0],
                    num_cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
                    num_completion_tokens=counts[1],
                    story=self.story,
                )
            )

    def usage(self) -> dict[str, Any]:
        """Return the token counts so far: each prompt once, and all tokens produced."""
        return self.usage_after(sum(choice.num_tokens for choice in self._choices))

    def usage_after(self, num_completion_tokens: int) -> dict[str, Any]:
        """Return the token counts after so many tokens."""
        num_prompt_tokens = sum(len(job.token_ids) for job in self._jobs)
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

    def __init__(self, stream: TextStream, timeline: RequestTimeline, stories: StoryBook, engine_number: int) -> None:
        self.num_tokens = 0
        self.num_cached_tokens: int | None = None  # None: nothing has come yet
        self._stream = stream
        self._timeline = timeline
        self._stories = stories
        self._engine_number = engine_number

    def take(self) -> TextPiece | None:
        """Return what has come, None if that is nothing; raises what ended the choice too early."""
        try:
            piece = self._stream.take()
        except Exception as error:
            self._finish(failure_reason(error))
            raise
        if piece is None:
            return None
        if self.num_cached_tokens is None:
            self.num_cached_tokens = piece.num_cached_tokens
        self.num_tokens += len(piece.token_ids)
        self._timeline.on_tokens(len(piece.token_ids), piece.received_at_seconds, piece.scheduled_at_seconds)
        if piece.finish_reason is not None:
            self._finish(piece.finish_reason)
        return piece

    def end(self, reason: FinishReason) -> None:
        """Stop the work on it; nothing happens if it has ended."""
        self._stream.abort()
        self._finish(reason)

    def _finish(self, reason: FinishReason) -> None:
        """Close its timeline and its story; only the first call counts."""
        self._timeline.finish(reason)
        self._stories.drop(self._engine_number, reason, self.num_tokens)


def _choice_of(
    tokens: OutputQueue,
    served: ServedModel,
    job: PromptJob,
    params: SamplingParams,
    stop: StopRule,
    reservation: Reservation,
    arrived_at_seconds: float,
) -> _Choice:
    stream = TextStream(
        tokens,
        Detokenizer(served.tokenizer, shown=served.shown_token_ids),
        stop.strings,
        stop_token_ids=params.stop_token_ids,
        include_stop_string=stop.include_match,
        min_tokens=stop.min_tokens,
        prompt=job.shown,
    )
    timeline = RequestTimeline(
        metrics=served.metrics,
        admission=served.admission,
        reservation=reservation,
        num_prompt_tokens=len(job.token_ids),
        max_tokens=params.max_tokens,
        arrived_at_seconds=arrived_at_seconds,
        queued_at_seconds=time.monotonic(),
    )
    return _Choice(stream, timeline, served.stories, tokens.request_id)
