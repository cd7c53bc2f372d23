"""WaitingQueue: who joins the batch next.

First those that were running already, then by priority, and within a priority by turns between the keys they came
under: the key that has been served the fewest tokens is next. So a key with many requests cannot starve another.
Source: Sheng et al., 2024, Fairness in Serving Large Language Models (arXiv:2401.00588), section 4, virtual token
counter: a key that has been away begins where the least served of those present is, so that it cannot save up turns.
"""

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from scheduler.sequence import Sequence

_PREFILL_WEIGHT = 1  # of a prompt's token; that of an output's token, which takes a step of its own, is 2
_DECODE_WEIGHT = 2
_MAX_FORGOTTEN = 1024  # keys that are not waiting whose counters are kept


class WaitingQueue:
    """Waiting sequences, by request id, in the order in which they should join."""

    def __init__(self) -> None:
        self._preempted: OrderedDict[int, Sequence] = OrderedDict()
        self._lines: dict[tuple[int, str], OrderedDict[int, Sequence]] = {}  # by priority and key; none is empty
        self._line_of: dict[int, tuple[int, str]] = {}  # of each request in a line
        self._num_served: dict[str, float] = {}  # weighted tokens, by key

    def __len__(self) -> int:
        return len(self._preempted) + len(self._line_of)

    def __iter__(self) -> Iterator[Sequence]:
        """Yield the sequences in the order in which they would join if nothing else were served meanwhile."""
        yield from self._preempted.values()
        for priority in sorted({priority for priority, _ in self._lines}):
            lines = {key: iter(line.values()) for (p, key), line in self._lines.items() if p == priority}
            turns = [(self._num_served[key], key) for key in lines]
            heapify(turns)
            while turns:
                num_served, key = heappop(turns)
                sequence = next(lines[key], None)
                if sequence is not None:
                    yield sequence
                    heappush(turns, (num_served + _PREFILL_WEIGHT * sequence.num_tokens, key))

    def has(self, request_id: int) -> bool:
        """Whether a sequence is in the queue."""
        return request_id in self._preempted or request_id in self._line_of

    def append(self, sequence: Sequence) -> None:
        """Put a sequence behind the others of its priority and key."""
        request = sequence.request
        place = (request.priority, request.key)
        if not any(key == request.key for _, key in self._lines):
            self._return(request.key)
        self._lines.setdefault(place, OrderedDict())[request.request_id] = sequence
        self._line_of[request.request_id] = place

    def put_back(self, sequence: Sequence) -> None:
        """Put a sequence that was running before all others."""
        self._preempted[sequence.request.request_id] = sequence
        self._preempted.move_to_end(sequence.request.request_id, last=False)

    def remove(self, request_id: int) -> bool:
        """Take a sequence out; False if it is not there."""
        if self._preempted.pop(request_id, None) is not None:
            return True
        place = self._line_of.pop(request_id, None)
        if place is None:
            return False
        line = self._lines[place]
        del line[request_id]
        if not line:
            del self._lines[place]
        return True

    def count_prompt(self, sequence: Sequence) -> None:
        """Charge a sequence's key for the prompt, once it joins."""
        self._charge(sequence.request.key, _PREFILL_WEIGHT * sequence.num_tokens)

    def count_output(self, sequence: Sequence, num_tokens: int) -> None:
        """Charge a sequence's key for tokens of its output."""
        self._charge(sequence.request.key, _DECODE_WEIGHT * num_tokens)

    def _charge(self, key: str, weight: float) -> None:
        self._num_served[key] = self._num_served.get(key, 0.0) + weight

    def _return(self, key: str) -> None:
        """Let a key that has nothing waiting begin no further back than those that have."""
        present = {other for _, other in self._lines}
        least = min((self._num_served[other] for other in present), default=0.0)
        self._num_served[key] = max(self._num_served.get(key, 0.0), least)
        if len(self._num_served) > len(present) + _MAX_FORGOTTEN:
            self._num_served = {other: self._num_served[other] for other in (*present, key)}
