"""PrefillBudget: how many prompt tokens one step computes, in all and for each API key.

Without shares, one long prompt would delay the short prompts of all other keys until it is computed. Max-min fairness
(Bertsekas and Gallager, Data Networks, 1992, section 6.5.2): what a key does not need goes to the other keys.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from itertools import islice
from typing import NamedTuple

from caravan.scheduler.block_manager import BlockManager
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import Request
from caravan.scheduler.prefill_limiter import PrefillLimiter
from caravan.scheduler.sequence import Sequence
from caravan.scheduler.waiting_queue import WaitingQueue

LEAST_SHARE = 16  # tokens; if there are too few for all keys, keys take turns


class Place(NamedTuple):
    """Requests with one share: those of one key and one urgency (lower is more urgent)."""

    urgency: int
    key: str

    @classmethod
    def of(cls, request: Request) -> "Place":
        return cls(request.urgency, request.key)


class PrefillBudget:
    """The prompt tokens that are left while a step is planned."""

    def __init__(
        self,
        num_tokens: int,
        running: Iterable[Sequence] = (),
        joining: Iterable[Sequence] = (),
        turns: dict[Place, int] | None = None,
    ) -> None:
        """Divide `num_tokens` between the keys of the running sequences and of those that could join.

        A single key gets them all. `turns` has the step in which each place last had a share, and is updated.
        """
        self.num_left = num_tokens
        wanted: dict[Place, int] = {}
        for sequence in running:
            if sequence.num_missing_tokens > 1:
                place = Place.of(sequence.request)
                wanted[place] = wanted.get(place, 0) + sequence.num_missing_tokens
        oldest = next(iter(wanted), None)
        for sequence in joining:
            place = Place.of(sequence.request)
            wanted[place] = wanted.get(place, 0) + sequence.num_tokens
        self._left_of: dict[Place, int] = {}  # a place that is missing has no limit of its own
        if len(wanted) > 1 and sum(wanted.values()) > num_tokens:
            turns = {} if turns is None else turns
            order = sorted(wanted, key=lambda place: (place.urgency, turns.get(place, -1), wanted[place]))
            self._left_of = _shares(wanted, order, num_tokens)
            now = max(turns.values(), default=-1) + 1
            late = {place: turns.get(place, -1) for place in wanted}
            turns.clear()
            turns |= {place: now if self._left_of[place] else turn for place, turn in late.items()}
            if oldest is not None:
                self._left_of[oldest] = max(self._left_of[oldest], 1)  # the oldest prompt always makes progress

    def left_of(self, sequence: Sequence) -> int:
        """Return how many tokens a sequence may compute."""
        return min(self.num_left, self._left_of.get(Place.of(sequence.request), self.num_left))

    def spend(self, sequence: Sequence, num_tokens: int) -> None:
        """Subtract the tokens of a sequence from the budget and from the share of its place."""
        self.num_left -= num_tokens
        place = Place.of(sequence.request)
        if place in self._left_of:
            self._left_of[place] -= num_tokens


def prefill_budget(
    running: Seq[Sequence],
    waiting: WaitingQueue,
    blocks: BlockManager,
    limiter: PrefillLimiter,
    config: EngineConfig,
    turns: dict[Place, int],
) -> PrefillBudget:
    """Return the prompt tokens of a step: its budget without one token for each decoding sequence."""
    num_decoding = sum(sequence.num_missing_tokens == 1 for sequence in running)
    num_keys = len({sequence.request.key for sequence in running} | waiting.keys)
    num_tokens = limiter.max_prefill_tokens(running, num_keys, max(config.max_batch_tokens - num_decoding, 1))
    if num_keys == 1 or len(running) >= config.max_num_seqs:
        return PrefillBudget(num_tokens, running, (), turns)
    joining = [one for one in islice(waiting, 2 * config.max_num_seqs) if one.awaited_hash is None]
    if joining and not blocks.can_allocate(joining[0], running):
        joining = []
    return PrefillBudget(num_tokens, running, joining, turns)


def _shares(wanted: Mapping[Place, int], order: list[Place], num_tokens: int) -> dict[Place, int]:
    """Return the max-min fair share of each place, more urgent ones first; the last in order may get none."""
    shares = dict.fromkeys(order, 0)
    while order and num_tokens:
        most_urgent = [place for place in order if place.urgency == order[0].urgency]
        served = sorted(most_urgent[: max(num_tokens // LEAST_SHARE, 1)], key=wanted.__getitem__)
        for num_left, place in zip(range(len(served), 0, -1), served, strict=True):
            shares[place] = min(wanted[place], num_tokens // num_left)
            num_tokens -= shares[place]
        order = [place for place in order if place not in served]
    return shares
