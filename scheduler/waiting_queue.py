"""WaitingQueue: the order in which waiting sequences join the batch.

Keys take turns: the key that has been served the fewest tokens is next, so a key with many requests cannot starve
another. Priority orders the requests of one key; a preempted sequence comes first among those of its priority. More
urgent requests, as permitted by the key, come before the turns of all others. A sequence joins the queue of its key
when its grammar is compiled: before that it would block those after it, because a step examines only the first ones.
Source: Sheng et al., 2024, Fairness in Serving Large Language Models (arXiv:2401.00588), section 4, virtual token
counter: a key that returns starts at the count of the least served waiting key, so that it cannot save up turns; if
none waits, at that of the least served running key, or else of the key that joined last.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Seq
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from caravan.scheduler.config import MAX_RESIDENT_ADAPTERS, EngineConfig
from caravan.scheduler.messages import Request
from caravan.scheduler.sequence import Sequence

_PREFILL_WEIGHT = 1  # of a prompt token
_DECODE_WEIGHT = 2  # of an output token, each of which takes a step
_MAX_FORGOTTEN = 1024  # keys without waiting requests whose counters are kept


class _Place(NamedTuple):
    """The queue in which a request waits. The queues of one urgency and key are served in the order of priority."""

    urgency: int
    key: str
    priority: int

    @classmethod
    def of(cls, request: Request) -> "_Place":
        return cls(request.urgency, request.key, request.priority)


class WaitingQueue:
    """Waiting sequences, by request id, in the order in which they should join."""

    def __init__(self, running: Collection[Sequence] = ()) -> None:
        """`running` is the scheduler's list of running sequences."""
        self._running = running
        self.compiling: dict[int, Sequence] = {}  # their grammars are not compiled yet; in no line
        self._lines: dict[_Place, OrderedDict[int, Sequence]] = {}  # none is empty
        self._place_of: dict[int, _Place] = {}  # of each request in a line
        self._num_served: dict[str, float] = {}  # weighted tokens, by key
        self._joined_last = ""  # a key

    def __len__(self) -> int:
        return len(self.compiling) + len(self._place_of)

    def __iter__(self) -> Iterator[Sequence]:
        """Yield the sequences that could join, in the order in which they would join without tokens of running ones."""
        lines: dict[int, dict[str, list[OrderedDict[int, Sequence]]]] = {}
        for place in sorted(self._lines):
            lines.setdefault(place.urgency, {}).setdefault(place.key, []).append(self._lines[place])
        for lines_of_keys in lines.values():
            waiting = {key: (s for line in of_key for s in line.values()) for key, of_key in lines_of_keys.items()}
            turns = [(self._num_served[key], key) for key in waiting]
            heapify(turns)
            while turns:
                num_served, key = heappop(turns)
                sequence = next(waiting[key], None)
                if sequence is not None:
                    yield sequence
                    heappush(turns, (num_served + _PREFILL_WEIGHT * sequence.num_tokens, key))

    @property
    def keys(self) -> set[str]:
        """The keys of sequences that could join."""
        return {place.key for place in self._lines}

    def has(self, request_id: int) -> bool:
        """Whether a sequence is in the queue."""
        return request_id in self._place_of or request_id in self.compiling

    def append(self, sequence: Sequence) -> None:
        """Add a sequence after the others of its urgency, key and priority, once its grammar is compiled."""
        request = sequence.request
        if sequence.matcher is not None and not sequence.matcher.is_ready:
            self.compiling[request.request_id] = sequence
            return
        place = _Place.of(request)
        if not any(other.key == request.key for other in self._lines):
            self._lift_count(request.key)
        self._lines.setdefault(place, OrderedDict())[request.request_id] = sequence
        self._place_of[request.request_id] = place

    def line_up(self) -> list[Sequence]:
        """Move sequences whose grammars have been compiled to the queues of their keys, and return them."""
        compiled = [s for s in self.compiling.values() if s.matcher is not None and s.matcher.is_ready]
        for sequence in compiled:
            del self.compiling[sequence.request.request_id]
            self.append(sequence)
        return compiled

    def put_back(self, sequence: Sequence) -> None:
        """Add a preempted sequence before the others of its urgency, key and priority."""
        self.append(sequence)
        place = self._place_of.get(sequence.request.request_id)
        if place is not None:  # else its next mask is being computed
            self._lines[place].move_to_end(sequence.request.request_id, last=False)

    def remove(self, request_id: int) -> Sequence | None:
        """Remove and return a sequence; None if it is not in the queue."""
        if (found := self.compiling.pop(request_id, None)) is not None:
            return found
        place = self._place_of.pop(request_id, None)
        if place is None:
            return None
        line = self._lines[place]
        sequence = line.pop(request_id)
        if not line:
            del self._lines[place]
        return sequence

    def count_prompt(self, sequence: Sequence) -> None:
        """Charge the key of a sequence that joins for its tokens."""
        self._joined_last = sequence.request.key
        self._charge(sequence.request.key, _PREFILL_WEIGHT * sequence.num_tokens)

    def count_output(self, sequence: Sequence, num_tokens: int) -> None:
        """Charge the key of a sequence for output tokens."""
        self._charge(sequence.request.key, _DECODE_WEIGHT * num_tokens)

    def _charge(self, key: str, weight: float) -> None:
        self._num_served[key] = self._num_served.get(key, 0.0) + weight

    def _lift_count(self, key: str) -> None:
        """Raise the count of a key that had nothing waiting to that of the least served other key."""
        present = {place.key for place in self._lines}
        others = present or {sequence.request.key for sequence in self._running} or {self._joined_last}
        least = min(self._num_served.get(other, 0.0) for other in others)
        self._num_served[key] = max(self._num_served.get(key, 0.0), least)
        if len(self._num_served) > len(present) + _MAX_FORGOTTEN:
            kept = {*present, *others, key} & self._num_served.keys()
            self._num_served = {other: self._num_served[other] for other in kept}


def has_place(sequence: Sequence, running: Seq[Sequence], config: EngineConfig) -> bool:
    """Return whether the batch is not full, and the adapter of a sequence fits into memory with those that run."""
    if len(running) >= config.max_num_seqs:
        return False
    adapter = sequence.request.adapter
    if not adapter:
        return True
    return len({one.request.adapter for one in running} - {"", adapter}) < MAX_RESIDENT_ADAPTERS
