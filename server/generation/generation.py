"""Generation: the choices of one request while the engine generates them."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.model.tokenizer.detokenizer import Detokenizer
from caravan.scheduler.messages import FinishReason, Request
from caravan.scheduler.thought_budget import ThoughtBudget
from caravan.server.engine.output_queue import OutputQueue
from caravan.server.generation.admission import Reservation
from caravan.server.generation.context import RequestContext
from caravan.server.generation.errors import InvalidGrammar, RequestCancelled, failure_reason
from caravan.server.generation.prompt_job import PromptJob
from caravan.server.generation.request_grammar import RequestGrammar
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.stop_strings import StopStrings
from caravan.server.generation.text_stream import TextDelta, TextStream
from caravan.server.generation.thought_splitter import Thoughts, ThoughtSplitter
from caravan.server.observe.choice_record import ChoiceRecord
from caravan.server.observe.request_record import RequestRecord

SUBMITTED_AT_ONCE = 64  # choices, after which the event loop may run other tasks


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """What becomes of the tokens of a choice as text, and the strings that end it."""

    strings: StopStrings
    include_match: bool = False
    skips_special_tokens: bool = True
    min_tokens: int = 0


NO_STOP = StopRule(strings=StopStrings([]))


class Generation:
    """All choices of a request. The index of a choice is the prompt's index times n plus its index for that prompt.

    `start` submits them. Always call `end` at the end: it aborts unfinished choices and completes the record.
    """

    def __init__(
        self,
        served: ServedModel,
        jobs: Sequence[PromptJob],
        context: RequestContext,
        *,
        answer_id: str,
        stop: StopRule = NO_STOP,
        grammar: RequestGrammar | None = None,
        thoughts: Thoughts | None = None,
        thought_budget: ThoughtBudget | None = None,
        has_timings: bool = False,
    ) -> None:
        """Make reservations for all choices; raises QueueFull or DeadlineExceeded."""
        self.record = RequestRecord(answer_id, context.request_id, context.key_name, context.arrived_at_seconds)
        self.record.model_name = served.name
        self.record.num_prompt_tokens = sum(len(job.token_ids) for job in jobs)
        if not any(job.pooling for job in jobs):
            self.record.params = jobs[0].params[0]
        self._served = served
        self._context = context
        self._jobs, self._stop, self._grammar = jobs, stop, grammar
        self._thoughts, self._thought_budget, self._has_timings = thoughts, thought_budget, has_timings
        self._is_ended = False
        self._has_output = False  # some choice has output to take
        self._waiter: asyncio.Future[None] | None = None  # resolved by new output
        self._failure: Exception | None = None  # raised after the deltas that came before it
        self._choices: list[_Choice] = []
        self._num_open = sum(len(job.params) for job in jobs)  # choices whose last delta was not returned yet
        self._time_limit: asyncio.TimerHandle | None = None
        lengths = [(len(job.token_ids), params.max_tokens) for job in jobs for params in job.params]
        self.record.add_event("tokenized", prompt_tokens=[len(job.token_ids) for job in jobs])
        self._reservations = served.admission.admit(lengths, context)
        self.record.admit(self._reservations[0].predicted_wait_seconds)

    async def start(self) -> None:
        """Submit all choices; raises EngineUnavailable or AdapterUnloaded, after which none is running."""
        left_seconds = self._context.seconds_left()
        if left_seconds is not None:
            self._time_limit = asyncio.get_running_loop().call_later(left_seconds, self._expire)
        reservations = iter(self._reservations)
        crash_group = secrets.randbits(63)
        try:
            for job in self._jobs:
                group = job.group or (secrets.randbits(63) if len(job.params) > 1 else 0)
                for params in job.params:
                    if self._choices and len(self._choices) % SUBMITTED_AT_ONCE == 0:
                        await asyncio.sleep(0)
                    self._submit(job, params, group, crash_group, next(reservations))
        except BaseException:
            self.end()
            raise
        self._served.history.begin(self.record)
        self._served.metrics.observe_request(len(self._jobs[0].params))

    def _submit(
        self, job: PromptJob, params: SamplingParams, group: int, crash_group: int, reservation: Reservation
    ) -> None:
        served, context = self._served, self._context
        request = Request(
            prompt_token_ids=job.token_ids,
            params=params,
            cache_salt=served.cache_salt(context.cache_salt),
            adapter=served.adapter_name,
            key=context.key_name,
            priority=context.priority,
            urgency=context.urgency,
            grammar=self._grammar.text if self._grammar is not None else "",
            thought=self._thought_budget,
            group=group,
            num_shared_tokens=job.num_shared_tokens,
            pooling=job.pooling,
        )
        outputs = served.engine.submit(request, crash_group)
        outputs.on_output = self._on_output
        served.admission.submit(reservation, outputs.request_id)
        record = served.history.queue(
            self.record,
            outputs.request_id,
            reservation.num_before,
            num_prompt_tokens=len(job.token_ids),
            max_tokens=params.max_tokens,
        )
        splitter = None if self._thoughts is None else self._thoughts.splitter(self._thought_budget)
        stream = _text_stream(outputs, served, job, params, self._stop, splitter)
        self._choices.append(_Choice(stream, served, record, reservation, outputs.request_id, context))

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the engine, None if it is not known."""
        return self._served.fingerprint or None

    @property
    def is_finished(self) -> bool:
        """Whether the last delta of every choice was returned."""
        return self._num_open == 0

    async def next_deltas(self) -> list[tuple[int, TextDelta]]:
        """Wait for and return the next deltas as (choice index, delta), at least one; raises the error of a choice.

        Between two calls output is buffered and merged in the output queues.
        """
        deltas: list[tuple[int, TextDelta]] = []
        while not deltas:
            if self._failure is not None:
                raise self._failure
            if not self._has_output:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            self._has_output = False
            try:
                for index, choice in enumerate(self._choices):
                    delta = choice.take()
                    if delta is not None:
                        deltas.append((index, delta))
                    if delta is not None and delta.finish_reason is not None:
                        self._num_open -= 1
            except InvalidGrammar as error:
                param = "allowed_token_ids" if self._grammar is None else self._grammar.param
                self._failure = InvalidGrammar(str(error), param)
            except Exception as error:
                self._failure = error
        return deltas

    def _expire(self) -> None:
        """Fail the request at its deadline."""
        self.record.is_past_deadline = True
        self._fail(self._context.deadline_exceeded())

    def cancel(self) -> None:
        """Fail the request, since another one has ended it."""
        self._fail(RequestCancelled())

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._on_output()

    def _on_output(self) -> None:
        """Wake the reader. An asyncio.Event would cost several times as much for each token."""
        self._has_output = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self) -> None:
        """Abort unfinished choices, and complete the record; only the first call has an effect."""
        if self._is_ended:
            return
        self._is_ended = True
        if self._time_limit is not None:
            self._time_limit.cancel()
        failure = None if self.record.is_past_deadline else self._failure
        reason: FinishReason = "abort" if failure is None else failure_reason(failure)
        for choice in self._choices:
            choice.end(reason)
        for reservation in self._reservations:  # including choices that were not submitted
            self._served.admission.leave(reservation, is_complete=False)
        if self._choices:
            record = self.record
            record.num_cached_tokens = self._num_cached_tokens()
            record.num_completion_tokens = self._num_read_tokens()
            metrics, key_name = self._served.metrics, self._context.key_name
            metrics.key_usage.count(key_name, record.num_prompt_tokens, record.num_completion_tokens)

    def usage(self) -> dict[str, Any]:
        """Return the token counts so far: each prompt once, and all generated tokens."""
        num_thought = sum(choice.record.num_thought_tokens for choice in self._choices)
        return self.usage_after(self._num_read_tokens(), num_thought)

    def usage_after(self, num_completion_tokens: int, num_thought_tokens: int) -> dict[str, Any]:
        """Return the token counts after these tokens, of which some may be of thoughts."""
        num_prompt_tokens = self.record.num_prompt_tokens
        return {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_completion_tokens,
            "total_tokens": num_prompt_tokens + num_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self._num_cached_tokens()},
            **({"completion_tokens_details": {"reasoning_tokens": num_thought_tokens}} if self._thoughts else {}),
            **({"timings": self.record.timings()} if self._has_timings else {}),
        }

    def _num_read_tokens(self) -> int:
        return sum(choice.record.num_read_tokens for choice in self._choices)

    def _num_cached_tokens(self) -> int:
        """Count the prompt tokens found in the prefix cache, once per prompt."""
        num_cached = 0
        start = 0
        for job in self._jobs:
            choices = self._choices[start : start + len(job.params)]
            num_cached += min((choice.record.num_cached_tokens or 0 for choice in choices), default=0)
            start += len(choices)
        return num_cached


class _Choice:
    """One choice; reading it updates its record."""

    def __init__(
        self,
        stream: TextStream,
        served: ServedModel,
        record: ChoiceRecord,
        reservation: Reservation,
        engine_number: int,
        context: RequestContext,
    ) -> None:
        self.record = record
        self._stream = stream
        self._served = served
        self._reservation = reservation
        self._engine_number = engine_number
        self._arrived_at_seconds = context.arrived_at_seconds
        self._is_ended = False

    def take(self) -> TextDelta | None:
        """Return the new output as a delta, None if there is none; raises the error that ended the choice."""
        try:
            delta = self._stream.take()
        except Exception as error:
            self._end(failure_reason(error))
            raise
        if delta is None:
            return None
        record = self.record
        if record.num_cached_tokens is None:
            record.num_cached_tokens = delta.num_cached_tokens
        record.scheduled_at_seconds = record.scheduled_at_seconds or delta.scheduled_at_seconds
        num_tokens = len(delta.token_ids)
        if num_tokens:
            received_at_seconds = delta.received_at_seconds
            waited_seconds = 0.0 if record.num_read_tokens else record.queue_seconds  # read with the first tokens only
            self._served.admission.count_tokens(self._reservation, num_tokens, waited_seconds)
            self._served.metrics.observe_tokens(record, num_tokens, received_at_seconds, self._arrived_at_seconds)
            record.read(num_tokens, received_at_seconds)
        record.num_thought_tokens += delta.num_thought_tokens
        if delta.finish_reason is not None:
            self._end(delta.finish_reason)
        return delta

    def end(self, reason: FinishReason) -> None:
        """Abort the choice; has no effect if it has ended."""
        self._stream.abort()
        self._end(reason)

    def _end(self, reason: FinishReason) -> None:
        """Complete its records; only the first call has an effect."""
        if self._is_ended:
            return
        self._is_ended = True
        self._served.admission.leave(self._reservation, is_complete=reason in ("stop", "length"))
        self._served.metrics.observe_end(self.record, reason, self._arrived_at_seconds)
        self._served.history.drop(self._engine_number, reason, self.record.num_read_tokens)


def _text_stream(
    outputs: OutputQueue,
    served: ServedModel,
    job: PromptJob,
    params: SamplingParams,
    stop: StopRule,
    splitter: ThoughtSplitter | None,
) -> TextStream:
    return TextStream(
        outputs,
        Detokenizer(served.tokenizer, skip_special=stop.skips_special_tokens, shown=served.shown_token_ids),
        stop.strings,
        stop_token_ids=params.stop_token_ids,
        include_stop_string=stop.include_match,
        min_tokens=stop.min_tokens,
        prompt=job.shown,
        splitter=splitter,
    )
