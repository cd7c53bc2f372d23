"""Prefix misses: why tokens were not in the prefix cache, for the client of a request and in the metrics."""

from collections.abc import Iterable
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter

from caravan.scheduler.messages import PrefixMiss, SequenceEvent
from caravan.scheduler.prefix_history import MissReason

REASONS: tuple[MissReason, ...] = get_args(MissReason)


def _without_other_keys(reason: MissReason) -> MissReason:
    return "not seen" if reason == "other key" else reason


def client_facts(miss: PrefixMiss | None) -> dict[str, Any]:
    """Return a miss as facts of an explanation.

    A client never learns whether another key has sent the same text: to it, that text was not seen.
    """
    if miss is None:
        return {}
    facts: dict[str, Any] = {"miss": _without_other_keys(miss.reason), "miss_token": miss.token}
    if miss.seconds is not None:
        facts["miss_seconds"] = round(miss.seconds, 1)
    return facts


class PrefixMissCounter:
    """Counts the tokens that were not found in the prefix cache, by reason."""

    def __init__(self, registry: CollectorRegistry, name: str, model_name: str, *, names_other_keys: bool) -> None:
        """Without `names_other_keys`, tokens that another key has in the cache are counted as not seen.

        By guesses, a reader of the metric could find out the texts of other keys.
        """
        self._names_other_keys = names_other_keys
        text = "Tokens not found in the prefix cache, by the reason of the first one."
        family = Counter(name, text, ["model_name", "reason"], registry=registry)
        reasons = REASONS if names_other_keys else dict.fromkeys(map(_without_other_keys, REASONS))
        self._counters = {reason: family.labels(model_name, reason.replace(" ", "_")) for reason in reasons}

    def count(self, events: Iterable[SequenceEvent]) -> None:
        """Count the tokens of sequences that joined the batch."""
        for event in events:
            if event.miss is not None:
                reason = event.miss.reason if self._names_other_keys else _without_other_keys(event.miss.reason)
                self._counters[reason].inc(event.miss.num_tokens)
