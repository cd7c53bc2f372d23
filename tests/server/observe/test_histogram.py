"""TokenHistogram: the same values and names as prometheus_client's histogram."""

import re

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from caravan.server.observe.histogram import TokenHistogram

BUCKETS = (0.5, 1, 2.5)


def exposition(registry: CollectorRegistry) -> str:
    return re.sub(r"(_created\{.*\}) .*", r"\1 some time", generate_latest(registry).decode())


# Multiples of a quarter, whose sums are exact in any order; some of them lie on a bound.
@given(st.lists(st.tuples(st.integers(0, 16).map(lambda quarters: quarters / 4), st.integers(1, 5)), max_size=8))
def test_it_equals_prometheus_clients_histogram(observed: list[tuple[float, int]]) -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    family = Histogram("gap_seconds", "Between.", ["model_name"], buckets=BUCKETS, registry=theirs).labels("m")
    histogram = TokenHistogram("gap_seconds", "Between.", {"model_name": "m"}, BUCKETS)
    ours.register(histogram)
    for value, num_times in observed:
        histogram.observe(value, num_times)
        for _ in range(num_times):
            family.observe(value)
    assert exposition(ours) == exposition(theirs)
