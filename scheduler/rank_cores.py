"""Which cores each rank computes on: those of its NUMA nodes, so that its weights and its KV pool are near them."""

import os
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/sys/devices/system")


@dataclass(frozen=True)
class RankCores:
    """The processors of a rank, and how many threads it computes with."""

    num_threads: int  # one per core; hardware threads of one core share it
    processors: tuple[int, ...] = ()  # that the rank is bound to; empty: it is not bound


def numa_nodes(system: Path = SYSTEM, allowed: frozenset[int] | None = None) -> list[frozenset[int]]:
    """Return the processors of each NUMA node that this process may use; one node where the system names none.

    `allowed` takes the place of the processors that this process may use.
    """
    if allowed is None:
        has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
        allowed = frozenset(os.sched_getaffinity(0) if has_affinity else range(os.cpu_count() or 1))
    found: dict[int, frozenset[int]] = {}
    for path in (system / "node").glob("node[0-9]*"):
        processors = _numbers(path / "cpulist") & allowed
        if processors:  # a node can have memory alone
            found[int(path.name.removeprefix("node"))] = processors
    return [found[number] for number in sorted(found)] or [allowed]


def rank_cores(num_ranks: int, system: Path = SYSTEM, allowed: frozenset[int] | None = None) -> list[RankCores]:
    """Return the cores of each rank, of the processors that this process may use, or of those that are `allowed`.

    With several NUMA nodes, each rank is bound to the processors of its own nodes, or to its part of a node that ranks
    share. With one node, ranks are not bound: any core is as near to the memory as another.
    """
    nodes = [_cores(system, processors) for processors in numa_nodes(system, allowed)]
    parts = [_part(nodes, rank, num_ranks) for rank in range(num_ranks)]
    return [
        RankCores(len(cores), tuple(sorted(one for core in cores for one in core)) if len(nodes) > 1 else ())
        for cores in parts
    ]


def bind(cores: RankCores) -> None:
    """Bind the calling thread, and those that it starts, to the processors of a rank, if it is to be bound."""
    if cores.processors:
        os.sched_setaffinity(0, cores.processors)


def _part(nodes: list[list[frozenset[int]]], rank: int, num_ranks: int) -> list[frozenset[int]]:
    """Return the cores of a rank: all of some nodes, or a part of one; a core of its own only if there are enough."""
    num_nodes = len(nodes)
    if num_ranks <= num_nodes:
        own = nodes[rank * num_nodes // num_ranks : (rank + 1) * num_nodes // num_ranks]
        return [core for cores in own for core in cores]
    node = rank * num_nodes // num_ranks
    sharing = [one for one in range(num_ranks) if one * num_nodes // num_ranks == node]
    place, cores = sharing.index(rank), nodes[node]
    start, end = (len(cores) * one // len(sharing) for one in (place, place + 1))
    return cores[start:end] or [cores[place % len(cores)]]


def _cores(system: Path, processors: frozenset[int]) -> list[frozenset[int]]:
    """Return the processors of a node by core."""
    cores: list[frozenset[int]] = []
    for processor in sorted(processors):
        siblings = _numbers(system / f"cpu/cpu{processor}/topology/thread_siblings_list") & processors
        core = siblings | {processor}
        if core not in cores:
            cores.append(core)
    return cores


def _numbers(path: Path) -> frozenset[int]:
    """Return the numbers of a list such as 0-3,8; none if the file does not exist or has none."""
    try:
        parts = [part.partition("-") for part in path.read_text("ascii").strip().split(",") if part]
    except OSError:
        return frozenset()
    return frozenset(number for first, _, last in parts for number in range(int(first), int(last or first) + 1))
