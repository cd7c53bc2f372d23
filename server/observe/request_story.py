"""RequestStory: what became of one HTTP request, moment by moment, for whoever asks why it took its time.

A story is bounded, but has its end: behind its first moments only what is new of a choice is kept, such as its first
token, or a reason to wait that it had not before. So log lines and spans, which are made of stories, have all times.
"""

import time
from typing import Any

from caravan.scheduler.messages import SequenceEvent, SequenceOutput

MAX_MOMENTS = 400  # of one request; of what comes after them the first of each kind of each choice is kept, too

_WORDS = {"wait": "waits", "join": "joined", "chunk": "computed", "preempt": "preempted"}


class SequenceStory:
    """One choice of a request, from the queue to its end."""

    def __init__(self, choice: int) -> None:
        self.choice = choice
        self.queued_at_seconds = time.monotonic()
        self.has_joined = False  # at some time
        self.finish_reason = ""  # not ended
        self.end: dict[str, Any] = {}  # the moment of its end
        self.num_tokens = 0
        self.num_steps = 0  # that brought tokens
        self.num_in_batch = 0  # sequences in these steps, together
        self.largest_batch = 0

    def count(self, output: SequenceOutput, batch_size: int) -> None:
        """Take in what a step of so many sequences did for it."""
        self.num_tokens += len(output.token_ids)
        self.num_steps += 1
        self.num_in_batch += batch_size
        self.largest_batch = max(self.largest_batch, batch_size)

    def written(self) -> dict[str, Any]:
        """Return how many steps it took, in what company, and how it ended."""
        mean = round(self.num_in_batch / self.num_steps, 1) if self.num_steps else 0
        steps = {"steps": self.num_steps, "mean_batch": mean, "largest_batch": self.largest_batch}
        facts = {"choice": self.choice, "tokens": self.num_tokens}
        return facts | steps | {"finish_reason": self.finish_reason or None}


class RequestStory:
    """The moments of a request in the order they came, each with the milliseconds since it arrived."""

    def __init__(self, answer_id: str, request_id: str, key_name: str, arrived_at_seconds: float) -> None:
        self.answer_id = answer_id
        self.request_id = request_id  # of the HTTP exchange
        self.key_name = key_name
        self.is_finished = False
        self.is_out_of_time = False  # its client waited for no longer
        self.arrived_at_seconds = arrived_at_seconds
        self.arrived_at_unix_seconds = time.time() - (time.monotonic() - arrived_at_seconds)
        self._moments: list[dict[str, Any]] = [{"at_ms": 0.0, "event": "arrived"}]
        self._kinds_told: set[tuple[Any, ...]] = set()
        self._num_left_out = 0
        self._sequences: dict[int, SequenceStory] = {}  # by the engine's number
        self._num_open = 0

    @property
    def num_choices(self) -> int:
        """Choices that were given to the engine."""
        return len(self._sequences)

    def tell(self, event: str, seconds_ago: float = 0.0, **facts: Any) -> None:
        """Add a moment, if there is room for one more of its kind: it is now, or was so long ago."""
        kind = (event, *map(facts.get, ("choice", "reason", "again")))
        if len(self._moments) >= MAX_MOMENTS and kind in self._kinds_told:
            self._num_left_out += 1
            return
        self._kinds_told.add(kind)
        at_ms = round(1000 * (time.monotonic() - seconds_ago - self.arrived_at_seconds), 3)
        at_ms = max(at_ms, self._moments[-1]["at_ms"])
        self._moments.append({"at_ms": at_ms, "event": event} | facts)

    def admit(self, predicted_wait_seconds: float) -> None:
        """Tell that the request was let in, and how long it will wait."""
        self.tell("admitted", predicted_wait_ms=round(1000 * predicted_wait_seconds, 1))

    def queue(self, engine_number: int, num_before: int) -> None:
        """Tell that the next choice was given to the engine, under its number there."""
        choice = len(self._sequences)
        self._sequences[engine_number] = SequenceStory(choice)
        self._num_open += 1
        self.tell("queued", choice=choice, engine_request=engine_number, behind=num_before)

    def take_event(self, event: SequenceEvent, step_seconds: float) -> None:
        """Tell what the scheduler did with a choice, for a step that took so long: most of it before the step began."""
        if event.kind == "abort":  # the one who wanted it tells of its end
            return
        seconds_ago = 0.0 if event.kind == "chunk" else step_seconds
        sequence = self._sequences[event.request_id]
        facts: dict[str, Any] = {"choice": sequence.choice}
        match event.kind:
            case "wait":
                facts["reason"] = event.reason
            case "join":
                waited_ms = max(0.0, 1000 * (time.monotonic() - seconds_ago - sequence.queued_at_seconds))
                facts |= {"waited_ms": round(waited_ms, 1), "cached_tokens": event.num_tokens}
                if sequence.has_joined:
                    facts["again"] = True
                sequence.has_joined = True
            case "chunk":
                facts |= {"tokens": event.num_tokens, "computed_tokens": event.num_computed_tokens}
            case "preempt":
                facts["lost_tokens"] = event.num_tokens
                sequence.queued_at_seconds = time.monotonic() - seconds_ago
        self.tell(_WORDS[event.kind], seconds_ago, **facts)

    def take_output(self, output: SequenceOutput, batch_size: int) -> None:
        """Tell of the first tokens of a choice, and of its end; count what lies between."""
        sequence = self._sequences[output.request_id]
        is_first = bool(output.token_ids) and not sequence.num_tokens
        sequence.count(output, batch_size)
        if is_first:
            self.tell("first token", choice=sequence.choice, batch=batch_size)
        if output.finish_reason is not None:
            self.end(output.request_id, output.finish_reason)

    def replay(self, down_seconds: float) -> None:
        """Tell that the engine ended, and that another one goes on from here."""
        for sequence in self._sequences.values():
            sequence.queued_at_seconds = time.monotonic()
        num_tokens = sum(sequence.num_tokens for sequence in self._sequences.values())
        self.tell("engine replaced", down_ms=round(1000 * down_seconds, 1), tokens=num_tokens)

    def end(self, request_id: int, reason: str, num_tokens: int | None = None) -> None:
        """Tell how a choice ended. Its reader knows better than the engine: a stop string may have ended it before."""
        sequence = self._sequences[request_id]
        if reason == "abort" and self.is_out_of_time:
            reason = "timeout"
        if num_tokens is not None:
            sequence.num_tokens = num_tokens
        if not sequence.finish_reason:
            self._num_open -= 1
            self.is_finished = self._num_open == 0
            self.tell("finished", choice=sequence.choice)
            sequence.end = self._moments[-1]
        sequence.finish_reason = reason
        sequence.end |= {"reason": reason, "tokens": sequence.num_tokens}

    def first_seconds(self, event: str) -> float | None:
        """Return how long after its arrival something first happened, None if it has not."""
        moments = (moment["at_ms"] / 1000 for moment in self._moments if moment["event"] == event)
        return next(moments, None)

    def engine_numbers(self) -> list[int]:
        """Return the engine's number of each choice, as `caravan top` and the page show it."""
        return [*self._sequences]

    def finish_reasons(self) -> list[str]:
        """Return why each choice that has ended did so, in their order."""
        return [sequence.finish_reason for sequence in self._sequences.values() if sequence.finish_reason]

    def written(self) -> dict[str, Any]:
        """Return the story for JSON."""
        return {
            "id": self.answer_id,
            "request_id": self.request_id,
            "object": "request.explanation",
            "arrived_at": round(self.arrived_at_unix_seconds, 3),
            "is_finished": self.is_finished,
            "timeline": self._moments,
            "left_out": self._num_left_out,
            "choices": [{"engine_request": number} | one.written() for number, one in self._sequences.items()],
        }
