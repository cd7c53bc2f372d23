"""RequestRecord: the times, counts, events and finish reasons of one request.

Metrics, log lines, spans and explanations are read from it. Its size is limited: beyond MAX_EVENTS it stores only the
first event of each kind per choice, so log lines and spans have all their times.
"""

import time
from typing import Any

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.messages import SequenceEvent, SequenceOutput
from caravan.server.observe.choice_record import ChoiceRecord
from caravan.server.observe.explanation import Explanation
from caravan.server.observe.prefix_misses import client_facts

MAX_EVENTS = 400  # of one request; beyond it only the first event of each kind per choice is stored

_WORDS = {"wait": "waits", "read": "read from file", "join": "joined", "chunk": "computed", "preempt": "preempted"}


class RequestRecord:
    """One generation or embedding request: its events in order, in milliseconds since arrival."""

    def __init__(self, response_id: str, request_id: str, key_name: str, arrived_at_seconds: float) -> None:
        self.response_id = response_id
        self.request_id = request_id  # of the HTTP request
        self.key_name = key_name
        self.arrived_at_seconds = arrived_at_seconds  # time.monotonic()
        self.arrived_at_unix_seconds = time.time() - (time.monotonic() - arrived_at_seconds)
        self.model_name = ""
        self.params: SamplingParams | None = None  # of the first choice; None for embeddings
        self.num_prompt_tokens = 0  # of all prompts; each is counted once
        self.num_cached_tokens = 0  # prompt tokens found in the prefix cache; set at the end
        self.num_completion_tokens = 0  # set at the end
        self.is_finished = False
        self.is_past_deadline = False
        self._events: list[dict[str, Any]] = [{"at_ms": 0.0, "event": "arrived"}]
        self._kinds: set[tuple[Any, ...]] = set()
        self._num_omitted = 0
        self._choices: dict[int, ChoiceRecord] = {}  # by the engine's number
        self._num_open = 0

    @property
    def num_choices(self) -> int:
        """The number of choices that were submitted to the engine."""
        return len(self._choices)

    def add_event(self, event: str, seconds_ago: float = 0.0, **facts: Any) -> None:
        """Add an event that happened `seconds_ago`, unless the limit of its kind is reached."""
        kind = (event, *map(facts.get, ("choice", "reason", "again")))
        if len(self._events) >= MAX_EVENTS and kind in self._kinds:
            self._num_omitted += 1
            return
        self._kinds.add(kind)
        at_ms = round(1000 * (time.monotonic() - seconds_ago - self.arrived_at_seconds), 3)
        at_ms = max(at_ms, self._events[-1]["at_ms"])
        self._events.append({"at_ms": at_ms, "event": event} | facts)

    def admit(self, predicted_wait_seconds: float) -> None:
        """Record that the request was admitted, and the predicted time in the queue."""
        self.add_event("admitted", predicted_wait_ms=round(1000 * predicted_wait_seconds, 1))

    def queue(self, engine_number: int, num_before: int, *, num_prompt_tokens: int, max_tokens: int) -> ChoiceRecord:
        """Record that the next choice was submitted, with its number in the engine; return the choice's record."""
        choice = ChoiceRecord(len(self._choices), num_prompt_tokens, max_tokens)
        self._choices[engine_number] = choice
        self._num_open += 1
        self.is_finished = False
        self.add_event("queued", choice=choice.index, engine_request=engine_number, behind=num_before)
        return choice

    def add_engine_event(self, event: SequenceEvent, step_seconds: float) -> None:
        """Record a scheduler event of a choice. All kinds but "chunk" happen before the step starts."""
        if event.kind == "abort":  # recorded by `end`
            return
        seconds_ago = 0.0 if event.kind == "chunk" else step_seconds
        choice = self._choices[event.request_id]
        facts: dict[str, Any] = {"choice": choice.index}
        match event.kind:
            case "wait":
                facts["reason"] = event.reason
            case "read":
                facts["tokens"] = event.num_tokens
            case "join":
                waited_ms = max(0.0, 1000 * (time.monotonic() - seconds_ago - choice.queued_at_seconds))
                facts |= {"waited_ms": round(waited_ms, 1), "cached_tokens": event.num_tokens}
                facts |= client_facts(event.miss)
                if choice.has_joined:
                    facts["again"] = True
                choice.has_joined = True
            case "chunk":
                facts |= {"tokens": event.num_tokens, "computed_tokens": event.num_computed_tokens}
            case "preempt":
                facts["lost_tokens"] = event.num_tokens
                choice.queued_at_seconds = time.monotonic() - seconds_ago
        self.add_event(_WORDS[event.kind], seconds_ago, **facts)

    def add_output(self, output: SequenceOutput, batch_size: int) -> None:
        """Count the tokens of a choice, and record its first token and its end."""
        choice = self._choices[output.request_id]
        is_first = bool(output.token_ids) and not choice.num_tokens
        choice.add_step(len(output.token_ids), batch_size)
        if is_first:
            self.add_event("first token", choice=choice.index, batch=batch_size)
        if output.finish_reason is not None:
            self.end(output.request_id, output.finish_reason)

    def replay(self, down_seconds: float) -> None:
        """Record that a new engine process resumes the request."""
        for choice in self._choices.values():
            choice.queued_at_seconds = time.monotonic()
        num_tokens = sum(choice.num_tokens for choice in self._choices.values())
        self.add_event("engine replaced", down_ms=round(1000 * down_seconds, 1), tokens=num_tokens)

    def add_choice_event(self, engine_number: int, event: str, **facts: Any) -> None:
        """Add an event of one choice, with the number of its tokens."""
        choice = self._choices[engine_number]
        self.add_event(event, choice=choice.index, tokens=choice.num_tokens, **facts)

    def requeue(self, engine_number: int) -> None:
        """Record that a choice waits again from now on."""
        self._choices[engine_number].queued_at_seconds = time.monotonic()

    def end(self, engine_number: int, reason: str, num_tokens: int | None = None) -> None:
        """Record how a choice ended. The reader's call overrides the engine's: a stop string may have ended it."""
        choice = self._choices[engine_number]
        if reason == "abort" and self.is_past_deadline:
            reason = "timeout"
        if num_tokens is not None:
            choice.num_tokens = num_tokens
        if not choice.finish_reason:
            self._num_open -= 1
            self.is_finished = self._num_open == 0
            self.add_event("finished", choice=choice.index)
            choice.end_event = self._events[-1]
        choice.finish_reason = reason
        choice.end_event |= {"reason": reason, "tokens": choice.num_tokens}

    def first_seconds(self, event: str) -> float | None:
        """Return the seconds from arrival to the first such event, None if there is none."""
        times = (one["at_ms"] / 1000 for one in self._events if one["event"] == event)
        return next(times, None)

    def engine_numbers(self) -> list[int]:
        """Return the engine's number of each choice, as shown by `caravan top` and the page."""
        return [*self._choices]

    def finish_reasons(self) -> list[str]:
        """Return the finish reason of each finished choice, in order."""
        return [choice.finish_reason for choice in self._choices.values() if choice.finish_reason]

    def timings(self) -> dict[str, float]:
        """Return where the time went so far, as `Timings` of usage; parts that have not begun are zero."""
        choices = self._choices.values()
        queued = min((one.submitted_at_seconds for one in choices), default=0.0)
        joined = min((one.scheduled_at_seconds for one in choices if one.scheduled_at_seconds), default=0.0)
        first = min((one.first_token_at_seconds for one in choices if one.num_read_tokens), default=0.0)
        last = max((one.last_token_at_seconds for one in choices), default=0.0)
        decode_seconds = max(last - first, 0.0)
        num_decoded = sum(one.num_read_tokens for one in choices) - 1  # the first one ends the prefill
        return {
            "queue_ms": round(1000 * max(joined - queued, 0.0), 3),
            "prefill_ms": round(1000 * max(first - joined, 0.0), 3),
            "decode_ms": round(1000 * decode_seconds, 3),
            "tokens_per_second": round(num_decoded / decode_seconds, 2) if decode_seconds and num_decoded > 0 else 0.0,
        }

    def explanation(self) -> Explanation:
        """Return the record as sent to clients."""
        return Explanation(
            id=self.response_id,
            request_id=self.request_id,
            arrived_at=round(self.arrived_at_unix_seconds, 3),
            is_finished=self.is_finished,
            timeline=self._events,
            left_out=self._num_omitted,
            choices=[choice.summary(number) for number, choice in self._choices.items()],
        )

    def log_fields(self) -> dict[str, object]:
        """Return counts, times and finish reasons for the log; times of missing events are omitted."""
        queued, joined = self.first_seconds("queued"), self.first_seconds("joined")
        times = {
            "queued_seconds": None if queued is None or joined is None else joined - queued,
            "first_token_seconds": self.first_seconds("first token"),
        }
        return {
            "id": self.response_id,
            "engine_requests": self.engine_numbers(),
            "prompt_tokens": self.num_prompt_tokens,
            "cached_tokens": self.num_cached_tokens,
            "completion_tokens": self.num_completion_tokens,
            "finish_reasons": self.finish_reasons(),
        } | {name: round(seconds, 3) for name, seconds in times.items() if seconds is not None}
