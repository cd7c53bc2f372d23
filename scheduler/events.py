"""EventLog: what happens to sequences between their outputs, for whoever wants to know where the time went."""

from caravan.scheduler.messages import SequenceEvent, WaitReason
from caravan.scheduler.sequence import ScheduledSequence, Sequence


class EventLog:
    """The events of one step. Decoding is none: outputs tell of it."""

    def __init__(self) -> None:
        self._events: list[SequenceEvent] = []

    def take(self) -> list[SequenceEvent]:
        """Return what has gathered, once."""
        events, self._events = self._events, []
        return events

    def wait(self, sequence: Sequence, reason: WaitReason) -> None:
        """Say why a sequence in the queue does not join, unless that was said before."""
        if sequence.wait_reason != reason:
            sequence.wait_reason = reason
            self._events.append(SequenceEvent(sequence.request.request_id, "wait", reason=reason))

    def join(self, sequence: Sequence) -> None:
        """Say that a sequence left the queue."""
        sequence.wait_reason = None
        self._events.append(SequenceEvent(sequence.request.request_id, "join", sequence.num_computed_tokens))

    def preempt(self, sequence: Sequence, num_lost_tokens: int) -> None:
        """Say that a sequence gave its blocks back."""
        self._events.append(SequenceEvent(sequence.request.request_id, "preempt", num_lost_tokens))

    def abort(self, request_id: int) -> None:
        """Say that nobody wants more of a sequence."""
        self._events.append(SequenceEvent(request_id, "abort"))

    def compute(self, scheduled: ScheduledSequence) -> None:
        """Say which part of a prompt, or of what a preemption lost, a step has computed."""
        sequence = scheduled.sequence
        if scheduled.num_tokens > 1 or sequence.num_computed_tokens <= sequence.num_prompt_tokens:
            event = (scheduled.num_tokens, sequence.num_computed_tokens)
            self._events.append(SequenceEvent(sequence.request.request_id, "chunk", *event))
