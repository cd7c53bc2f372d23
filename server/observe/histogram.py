"""TokenHistogram: a Prometheus histogram that is cheap enough to update for every token."""

import math
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class TokenHistogram(Collector):
    """Counts of values up to each bound, with their sum.

    prometheus_client's histogram takes two locks and a linear search for each value. This one is not thread-safe, and
    can count a value several times at once.
    """

    def __init__(self, name: str, text: str, labels: dict[str, str], buckets: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._bounds = [*buckets, math.inf]
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        self._created_at_seconds = time.time()

    def observe(self, value: float, num_times: int = 1) -> None:
        """Count a value `num_times` times."""
        self._counts[bisect_left(self._bounds, value)] += num_times
        self._sum += value * num_times

    def collect(self) -> Iterable[Metric]:
        """Return the same family as prometheus_client's histogram."""
        family = HistogramMetricFamily(self._name, self._text, labels=list(self._labels))
        cumulative = zip(map(floatToGoString, self._bounds), accumulate(self._counts), strict=True)
        family.add_metric(
            list(self._labels.values()), [(bound, float(count)) for bound, count in cumulative], self._sum
        )
        family.add_sample(self._name + "_created", self._labels, self._created_at_seconds)
        return [family]
