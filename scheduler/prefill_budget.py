"""PrefillBudget: how many tokens of prompts one step computes, in all and for each API key.

Without shares of the keys, one long prompt would hold up the short ones of all others until it is computed. Max-min
fairness (Bertsekas and Gallager, Data Networks, 1992, section 6.5.2): what a key does not need goes to the others.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from itertools import islice
from typing import NamedTuple

from caravan.scheduler.block_pool import BlockPool
from caravan.scheduler.block_table import has_room
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import Request
from caravan.scheduler.pace import Pace
from caravan.scheduler.sequence import Sequence
from caravan.scheduler.waiting_queue import WaitingQueue

LEAST_SHARE = 16  # tokens; where that is not enough for all keys, they take turns


class Place(NamedTuple):
    """Whose share it is: the more urgent requests of a key (lower numbers) have one of their own."""

    urgency: int
    key: str

    @classmethod
    def of(cls, request: Request) -> "Place":
        return cls(request.urgency, request.key)


class PrefillBudget:
    """The tokens that are left of a step's budget while it is planned."""

    def __init__(
        self,
        num_tokens: int,
        running: Iterable[Sequence] = (),
        joining: Iterable[Sequence] = (),
        turns: dict[Place, int] | None = None,
    ) -> None:
        """Share out `num_tokens` between the keys of what runs and of what could join; one key gets them all.

        `turns` says when a place last had a share, and is kept up to date.
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
        self._left_of: dict[Place, int] = {}  # a place that is not there has no limit of its own
        if len(wanted) > 1 and sum(wanted.values()) > num_tokens:
            turns = {} if turns is None else turns
            order = sorted(wanted, key=lambda place: (place.urgency, turns.get(place, -1), wanted[place]))
            self._left_of = _shares(wanted, order, num_tokens)
            now = max(turns.values(), default=-1) + 1
            late = {place: turns.get(place, -1) for place in wanted}
            turns.clear()
            turns |= {place: now if self._left_of[place] else turn for place, turn in late.items()}
            if oldest is not None:
                self._left_of[oldest] = max(self._left_of[oldest], 1)  # it gets on, whoever comes

    def left_of(self, sequence: Sequence) -> int:
        """Return how many tokens a sequence may have."""
        return min(self.num_left, self._left_of.get(Place.of(sequence.request), self.num_left))

    def spend(self, sequence: Sequence, num_tokens: int) -> None:
        """Take the tokens of a sequence off the budget and off the share of its key."""
        self.num_left -= num_tokens
        place = Place.of(sequence.request)
        if place in self._left_of:
            self._left_of[place] -= num_tokens


def prefill_budget(
    running: Seq[Sequence],
    waiting: WaitingQueue,
    pool: BlockPool,
    pace: Pace,
    config: EngineConfig,
    turns: dict[Place, int],
) -> PrefillBudget:
    """Return what a step has for prompts: not what running sequences need for their next tokens."""
    num_decoding = sum(sequence.num_missing_tokens == 1 for sequence in running)
    num_keys = len({sequence.request.key for sequence in running} | waiting.keys)
    num_tokens = pace.max_prefill_tokens(running, num_keys, max(config.max_batch_tokens - num_decoding, 1))
    if num_keys == 1 or len(running) >= config.max_num_seqs:
        return PrefillBudget(num_tokens, running, (), turns)
    joining = [one for one in islice(waiting, 2 * config.max_num_seqs) if one.awaited_hash is None]
    if joining and not has_room(pool, joining[0], [], running, config.block_size):
        joining = []
    return PrefillBudget(num_tokens, running, joining, turns)


def _shares(wanted: Mapping[Place, int], order: list[Place], num_tokens: int) -> dict[Place, int]:
    """Return the share of each place: max-min between as many as the tokens are enough for, the more urgent first."""
    shares = dict.fromkeys(order, 0)
    while order and num_tokens:
        most_urgent = [place for place in order if place.urgency == order[0].urgency]
        served = sorted(most_urgent[: max(num_tokens // LEAST_SHARE, 1)], key=wanted.__getitem__)
        for num_left, place in zip(range(len(served), 0, -1), served, strict=True):
            shares[place] = min(wanted[place], num_tokens // num_left)
            num_tokens -= shares[place]
        order = [place for place in order if place not in served]
    return shares
