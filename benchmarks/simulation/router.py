"""Routers: which replica gets a request."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from benchmarks.simulation.replica import Replica

Router = Callable[[int, Sequence[Replica]], int]  # number of the request, replicas -> index of the replica


def least_outstanding(number: int, replicas: Sequence[Replica]) -> int:
    """Return the replica with the fewest requests that have not ended; replicas with equally many take turns.

    As proxies do under the name of least connections: one stream is one connection.
    """
    count = len(replicas)
    return min(range(count), key=lambda index: (replicas[index].num_outstanding, (index - number) % count))


def round_robin(number: int, replicas: Sequence[Replica]) -> int:
    """Return the replicas in turn, whatever their load."""
    return number % len(replicas)


ROUTERS: Mapping[str, Router] = MappingProxyType({"least-outstanding": least_outstanding, "round-robin": round_robin})
