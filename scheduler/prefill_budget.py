"""PrefillBudget: how many tokens of prompts one step computes, in all and for each API key.

Without shares of the keys, one long prompt would hold up the short ones of all others until it is computed. Max-min
fairness (Bertsekas and Gallager, Data Networks, 1992, section 6.5.2): what a key does not need goes to the others.
"""

from collections import Counter
from collections.abc import Iterable

from caravan.scheduler.sequence import Sequence


class PrefillBudget:
    """The tokens that are left of a step's budget while it is planned."""

    def __init__(self, num_tokens: int, running: Iterable[Sequence] = (), joining: Iterable[Sequence] = ()) -> None:
        """Share out `num_tokens` between the keys of what runs and of what could join; one key gets them all."""
        self.num_left = num_tokens
        wanted: Counter[str] = Counter()
        for sequence in running:
            if sequence.num_missing_tokens > 1:
                wanted[sequence.request.key] += sequence.num_missing_tokens
        for sequence in joining:
            wanted[sequence.request.key] += sequence.num_tokens
        self._left_of: dict[str, int] = {}  # by key; a key that is not there has no limit of its own
        if len(wanted) > 1 and wanted.total() > num_tokens:
            self._left_of = _max_min_shares(wanted, num_tokens)

    def left_of(self, key: str) -> int:
        """Return how many tokens a key may still have."""
        return min(self.num_left, self._left_of.get(key, self.num_left))

    def spend(self, key: str, num_tokens: int) -> None:
        """Take tokens off the budget and off the share of a key."""
        self.num_left -= num_tokens
        if key in self._left_of:
            self._left_of[key] -= num_tokens


def _max_min_shares(wanted: Counter[str], num_tokens: int) -> dict[str, int]:
    """Return the share of each key; all together may exceed num_tokens by a token for each key."""
    shares: dict[str, int] = {}
    num_keys = len(wanted)
    for key, num_wanted in reversed(wanted.most_common()):
        share = min(num_wanted, num_tokens // num_keys)
        shares[key] = max(share, 1)  # everybody gets on
        num_tokens -= share
        num_keys -= 1
    return shares
