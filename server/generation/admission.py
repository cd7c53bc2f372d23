"""Admission: admit or reject requests, and predict their time in the engine's queue."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from typing_extensions import override

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import StepOutput
from caravan.scheduler.step_cost import StepCost
from caravan.server.engine.listener import EngineListener
from caravan.server.generation.context import RequestContext
from caravan.server.generation.errors import DeadlineExceeded, QueueFull
from caravan.server.generation.fair_share import has_room
from caravan.server.generation.request_limits import QueueLimits
from caravan.server.generation.wait_forecast import forecast_wait_seconds
from caravan.server.observe.metrics import Metrics, Rejection

SMOOTHING = 0.1  # the weight of the latest sequence in the moving average of used max_tokens


@dataclass(eq=False, kw_only=True)
class Reservation:
    """An admitted sequence, until it ends."""

    priority: int
    key_name: str
    urgency: int = 0
    num_prompt_tokens: int
    max_tokens: int
    predicted_wait_seconds: float = 0.0
    num_before: int = 0  # queued sequences that will join the batch before it
    engine_number: int | None = None  # None: not submitted
    is_in_batch: bool = False  # as last reported by the engine
    num_tokens: int = 0  # generated so far


@dataclass
class Admission(EngineListener):
    """The reservations of all admitted sequences that have not ended.

    A request is admitted as a whole or rejected. The limits of requests and tokens never reject a key that has nothing
    waiting; the limits of time can. The wait of a request is predicted from the sequences before it, the duration of
    the latest steps, and the fraction of `max_tokens` that the latest sequences used.
    """

    config: EngineConfig
    metrics: Metrics
    limits: QueueLimits = field(default_factory=QueueLimits)
    num_engines: int = 1  # that share the work; `config` has the limits of all together
    start_seconds: Callable[[], float] = field(default=lambda: 0.0)  # expected, until the engine is loaded
    _waiting: dict[Reservation, None] = field(default_factory=dict)  # in order of arrival
    _running: dict[Reservation, None] = field(default_factory=dict)
    _submitted: dict[int, Reservation] = field(default_factory=dict)  # by the engine's number
    _cost: StepCost = field(default_factory=StepCost)
    _used_fraction: float = 1.0  # of max_tokens, moving average

    def num_queued_tokens(self) -> int:
        """Return the tokens of all sequences without a first token: their prompts, and their outputs as predicted.

        Of `max_tokens`, the fraction counts that the latest sequences used.
        """
        return sum(one.num_prompt_tokens + self._expected_tokens(one) for one in self._waiting)

    @override
    def on_step(self, output: StepOutput) -> None:
        """Update the cost of steps, and which sequences are in the batch."""
        stats = output.stats
        for event in output.events:
            if event.kind in ("join", "preempt") and (reservation := self._submitted.get(event.request_id)) is not None:
                reservation.is_in_batch = event.kind == "join"
        for one in output.outputs:
            if one.finish_reason is not None and (reservation := self._submitted.pop(one.request_id, None)) is not None:
                reservation.is_in_batch = True  # it waits for nothing any more
        if stats.num_prefill_tokens or stats.num_decode_tokens:
            self._cost.observe(stats.num_prefill_tokens, stats.step_seconds)

    def admit(self, lengths: Sequence[tuple[int, int]], context: RequestContext) -> list[Reservation]:
        """Return a reservation for each sequence of a request; `lengths` are its prompt tokens and its max_tokens.

        Raises QueueFull if a limit of the queue or of the waiting time would be exceeded, and DeadlineExceeded if the
        response would be complete after the request's deadline.
        """
        before = self._before(context, self._waiting)
        queued = [reservation for reservation in (*self._running, *self._waiting) if not reservation.is_in_batch]
        num_before = len(self._before(context, queued))
        start_seconds = self.start_seconds()
        queue_seconds = self._forecast_seconds(before, context, lengths[0][0])
        wait_seconds = start_seconds + queue_seconds
        self._check_room(lengths, context, start_seconds, wait_seconds)
        limit_seconds = self.limits.max_wait_seconds
        if limit_seconds is not None and queue_seconds > limit_seconds:  # without the load, which only requests begin
            fact = f"The predicted wait is {queue_seconds:.1f} s; the limit is {limit_seconds:g} s."
            self._reject("wait", fact, wait_seconds - limit_seconds)
        if context.timeout_seconds is not None:
            left_seconds = context.seconds_left() or 0.0
            needed_seconds = wait_seconds + self._work_seconds(lengths)
            if needed_seconds > left_seconds:
                fact = (
                    f"The predicted response time is {needed_seconds:.1f} s; the deadline is in {left_seconds:.1f} s."
                )
                self._reject("deadline", fact, needed_seconds - left_seconds)
        reservations = [
            Reservation(
                priority=context.priority,
                urgency=context.urgency,
                key_name=context.key_name,
                num_prompt_tokens=num_prompt_tokens,
                max_tokens=max_tokens,
                predicted_wait_seconds=wait_seconds,
                num_before=num_before + number,
            )
            for number, (num_prompt_tokens, max_tokens) in enumerate(lengths)
        ]
        self._waiting |= dict.fromkeys(reservations)
        return reservations

    @override
    def on_replay(self, num_requests: int, down_seconds: float) -> None:
        """Mark all sequences as queued in the new engine."""
        self.requeue(self._submitted)

    def requeue(self, engine_numbers: Iterable[int]) -> None:
        """Mark sequences as queued, in the engine that resumes them."""
        for number in engine_numbers:
            if (reservation := self._submitted.get(number)) is not None:
                reservation.is_in_batch = False

    def drain_seconds(self) -> float:
        """Return the expected time until all admitted sequences have ended if no more come."""
        ends = [self._expected_tokens(one) - one.num_tokens for one in (*self._running, *self._waiting)]
        num_prompt_tokens = sum(one.num_prompt_tokens for one in self._waiting)
        return (
            max([0, *ends]) * self._cost.step_seconds
            + num_prompt_tokens * self._cost.prefill_seconds / self.num_engines
        )

    def submit(self, reservation: Reservation, engine_number: int) -> None:
        """Store the number that the engine uses for a sequence."""
        reservation.engine_number = engine_number
        self._submitted[engine_number] = reservation

    def count_tokens(self, reservation: Reservation, num_tokens: int, waited_seconds: float) -> None:
        """Count new tokens of a sequence; with the first ones, record the error of the predicted wait."""
        if reservation in self._waiting:
            del self._waiting[reservation]
            self._running[reservation] = None
            self.metrics.wait_error.observe(reservation.predicted_wait_seconds - waited_seconds)
        reservation.num_tokens += num_tokens

    def leave(self, reservation: Reservation, *, is_complete: bool) -> None:
        """Remove a sequence that has ended; a complete one updates the fraction of max_tokens in use."""
        if reservation.engine_number is not None:
            self._submitted.pop(reservation.engine_number, None)
        was_waiting = self._waiting.pop(reservation, reservation) is None
        was_running = self._running.pop(reservation, reservation) is None
        if (was_waiting or was_running) and is_complete and reservation.max_tokens:
            self._used_fraction += SMOOTHING * (reservation.num_tokens / reservation.max_tokens - self._used_fraction)

    def _check_room(
        self, lengths: Sequence[tuple[int, int]], context: RequestContext, start_seconds: float, wait_seconds: float
    ) -> None:
        key_name = context.key_name
        sequences_of: Counter[str] = Counter()  # waiting, by key
        tokens_of: Counter[str] = Counter()
        for reservation in _rivals(self._waiting, context):
            sequences_of[reservation.key_name] += 1
            tokens_of[reservation.key_name] += reservation.num_prompt_tokens + reservation.max_tokens
        if not sequences_of[key_name]:  # else a request larger than the limits would never be admitted
            return
        num_free = max(self.config.max_num_seqs - len(_rivals(self._running, context)), 0)
        retry_after_seconds = max(start_seconds, wait_seconds / sequences_of.total())
        if not has_room(sequences_of, key_name, len(lengths) - num_free, self.limits.max_requests):
            fact = f"The queue has {sequences_of.total()} requests; the limit is {self.limits.max_requests}."
            self._reject("queue_full", fact, retry_after_seconds)
        num_new_tokens = sum(map(sum, lengths))
        if not has_room(tokens_of, key_name, num_new_tokens, self.limits.max_tokens):
            fact = f"The queue has {tokens_of.total()} tokens; {num_new_tokens} more would exceed the limit of"
            self._reject("queue_tokens", f"{fact} {self.limits.max_tokens}.", retry_after_seconds)

    def _reject(self, reason: Rejection, fact: str, retry_after_seconds: float) -> NoReturn:
        self.metrics.count_rejection(reason)
        raise (DeadlineExceeded if reason == "deadline" else QueueFull)(fact, retry_after_seconds)

    def _forecast_seconds(
        self, before: Sequence[Reservation], context: RequestContext, num_prompt_tokens: int
    ) -> float:
        """Return the predicted wait of one more sequence after those in `before`.

        A step computes no more prompt tokens of another key than of its own.
        """

        def prompt_tokens(reservation: Reservation) -> int:
            is_own = reservation.key_name == context.key_name or reservation.urgency < context.urgency
            return reservation.num_prompt_tokens if is_own else min(reservation.num_prompt_tokens, num_prompt_tokens)

        running = _rivals(self._running, context)
        # Lines of batches make way for a client's request, one in each step.
        in_batch = [one for one in (*self._running, *self._waiting) if one.is_in_batch]
        steps_of_lines = range(1, len(in_batch) - len(_rivals(in_batch, context)) + 1)
        num_tokens = [one.num_prompt_tokens + one.max_tokens for one in (*running, *before)]
        mean_num_tokens = sum(num_tokens) / len(num_tokens) if num_tokens else 1
        max_running = min(self.config.max_num_seqs, int(self.config.num_tokens / mean_num_tokens) or 1)
        return forecast_wait_seconds(
            [*(max(self._expected_tokens(one) - one.num_tokens, 1) for one in running), *steps_of_lines],
            [(prompt_tokens(reservation), self._expected_tokens(reservation)) for reservation in before],
            max_running=max_running,
            step_seconds=self._cost.step_seconds,
            prefill_seconds=self._cost.prefill_seconds / self.num_engines,
        )

    def _before(self, context: RequestContext, waiting: Collection[Reservation]) -> list[Reservation]:
        """Return the waiting sequences that would join first: urgent ones, those of its key, as many of each other key.

        Within an urgency the order is round-robin over keys, and by priority within a key.
        """
        own_place = (context.urgency, context.key_name)
        num_of: dict[tuple[int, str], int] = {}
        more_urgent, own, others = [], [], []
        for reservation in sorted(waiting, key=lambda reservation: reservation.priority):
            place = (reservation.urgency, reservation.key_name)
            num_of[place] = num_of.get(place, 0) + 1
            if reservation.urgency < context.urgency:
                more_urgent.append(reservation)
            elif place == own_place and reservation.priority <= context.priority:
                own.append(reservation)
            elif reservation.urgency == context.urgency and place != own_place:
                others.append((num_of[place], reservation))
        return [*more_urgent, *own, *(reservation for turn, reservation in others if turn <= len(own) + 1)]

    def _expected_tokens(self, reservation: Reservation) -> int:
        return max(round(self._used_fraction * reservation.max_tokens), 1)

    def _work_seconds(self, lengths: Sequence[tuple[int, int]]) -> float:
        """Return the seconds of work for a running request: its prompts, and the steps of its longest choice."""
        num_steps = max(max_tokens for _, max_tokens in lengths) * self._used_fraction
        num_prompt_tokens = sum(num for num, _ in lengths)
        return num_prompt_tokens * self._cost.prefill_seconds + num_steps * self._cost.step_seconds


def _rivals(reservations: Iterable[Reservation], context: RequestContext) -> list[Reservation]:
    """Return the sequences whose places a request cannot have: lines of batches wait last, and make way for clients."""
    return [one for one in reservations if one.urgency <= max(context.urgency, 0)]
