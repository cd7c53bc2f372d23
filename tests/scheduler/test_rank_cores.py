"""Which cores each rank gets, on machines that are folders."""

import os
from pathlib import Path

import pytest

from caravan.scheduler.rank_cores import RankCores, bind, numa_nodes, rank_cores


def machine(folder: Path, nodes: dict[int, str], siblings: dict[int, str] | None = None) -> Path:
    """Write the files of a machine: the processors of its nodes, and those that share a core."""
    for node, processors in nodes.items():
        (folder / f"node/node{node}").mkdir(parents=True)
        (folder / f"node/node{node}/cpulist").write_text(processors + "\n")
    (folder / "node/has_cpu").write_text("0\n")
    for processor, shared in (siblings or {}).items():
        topology = folder / f"cpu/cpu{processor}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(shared + "\n")
    return folder


def parts(system: Path, num_ranks: int, num_processors: int) -> list[tuple[int, tuple[int, ...]]]:
    cores = rank_cores(num_ranks, system, frozenset(range(num_processors)))
    return [(one.num_threads, one.processors) for one in cores]


def test_each_rank_has_a_node_of_its_own(tmp_path: Path) -> None:
    system = machine(tmp_path, {0: "0-3", 1: "4-7"})
    assert parts(system, 2, 8) == [(4, (0, 1, 2, 3)), (4, (4, 5, 6, 7))]


def test_a_rank_has_several_nodes_if_there_are_more_nodes_than_ranks(tmp_path: Path) -> None:
    system = machine(tmp_path, {0: "0,1", 1: "2,3", 2: "4,5", 10: "6,7"})
    assert parts(system, 2, 8) == [(4, (0, 1, 2, 3)), (4, (4, 5, 6, 7))]
    assert parts(system, 1, 8) == [(8, tuple(range(8)))]


def test_ranks_share_a_node_by_cores_if_there_are_more_ranks_than_nodes(tmp_path: Path) -> None:
    siblings = {number: f"{number % 4},{number % 4 + 4}" for number in range(8)}
    system = machine(tmp_path, {0: "0-1,4-5", 1: "2-3,6-7"}, siblings)
    assert parts(system, 4, 8) == [(1, (0, 4)), (1, (1, 5)), (1, (2, 6)), (1, (3, 7))]
    assert parts(system, 3, 8) == [(1, (0, 4)), (1, (1, 5)), (2, (2, 3, 6, 7))]


def test_ranks_on_one_node_divide_its_cores_and_are_not_bound(tmp_path: Path) -> None:
    system = machine(tmp_path, {0: "0-6"})
    assert parts(system, 3, 7) == [(2, ()), (2, ()), (3, ())]
    assert parts(system, 9, 7)[-1] == (1, ())


def test_processors_that_this_process_may_not_use_do_not_count(tmp_path: Path) -> None:
    system = machine(tmp_path, {0: "0-3", 1: "4-7", 2: ""})
    assert rank_cores(2, system, frozenset({1, 2, 5})) == [RankCores(2, (1, 2)), RankCores(1, (5,))]
    assert rank_cores(2, system, frozenset({4, 5})) == [RankCores(1), RankCores(1)]


def test_a_system_that_names_no_nodes_has_one(tmp_path: Path) -> None:
    assert numa_nodes(tmp_path, frozenset({0, 2})) == [frozenset({0, 2})]
    assert numa_nodes(tmp_path) == [frozenset(os.sched_getaffinity(0))]


def test_a_thread_is_bound_to_the_processors_of_its_rank_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[tuple[int, tuple[int, ...]]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda *args: bound.append(args))
    bind(RankCores(4))
    bind(RankCores(2, (2, 3)))
    assert bound == [(0, (2, 3))]
