"""EventLog: what happens to sequences between their outputs, for explanations of their latency."""

from caravan.scheduler.messages import PrefixMiss, SequenceEvent, WaitReason
from caravan.scheduler.sequence import ScheduledSequence, Sequence


class EventLog:
    """The events of one step. Decoding has no events: its outputs show it."""

    def __init__(self) -> None:
        self._events: list[SequenceEvent] = []

    def take(self) -> list[SequenceEvent]:
        """Return the events since the last call."""
        events, self._events = self._events, []
        return events

    def wait(self, sequence: Sequence, reason: WaitReason) -> None:
        """Record why a waiting sequence does not join, unless it is the reason recorded last."""
        if sequence.wait_reason != reason:
            sequence.wait_reason = reason
            self._events.append(SequenceEvent(sequence.request.request_id, "wait", reason=reason))

    def read(self, sequence: Sequence, num_tokens: int) -> None:
        """Record that the blocks of num_tokens tokens were read from the spill file for a waiting sequence."""
        self._events.append(SequenceEvent(sequence.request.request_id, "read", num_tokens))

    def join(self, sequence: Sequence, miss: PrefixMiss) -> None:
        """Record that a sequence left the queue, and why no more of it was in the prefix cache."""
        sequence.wait_reason = None
        request_id = sequence.request.request_id
        self._events.append(SequenceEvent(request_id, "join", sequence.num_computed_tokens, miss=miss))

    def preempt(self, sequence: Sequence, num_lost_tokens: int) -> None:
        """Record that a sequence lost its blocks."""
        self._events.append(SequenceEvent(sequence.request.request_id, "preempt", num_lost_tokens))

    def abort(self, request_id: int) -> None:
        """Record that a request was aborted."""
        self._events.append(SequenceEvent(request_id, "abort"))

    def compute(self, scheduled: ScheduledSequence) -> None:
        """Record which part of a prompt, or of the tokens lost by a preemption, a step has computed."""
        sequence = scheduled.sequence
        if scheduled.num_tokens > 1 or sequence.num_computed_tokens <= sequence.num_prompt_tokens:
            event = (scheduled.num_tokens, sequence.num_computed_tokens)
            self._events.append(SequenceEvent(sequence.request.request_id, "chunk", *event))
