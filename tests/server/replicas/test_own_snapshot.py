"""own_snapshot: an API process sees the changes and tables of its own requests only."""

from caravan.scheduler.messages import EngineSnapshot, StepStats
from caravan.scheduler.step_change import SequenceMove, SequenceTable, StepChange
from caravan.server.replicas.own_snapshot import own_snapshot


def table(number: int) -> SequenceTable:
    return SequenceTable(number, 3, 5, 4, 3, [number])


def test_changes_and_tables_of_others_are_left_out() -> None:
    change = StepChange(
        7,
        0.1,
        1,
        2,
        3,
        queued=[1, 2],
        joined=[table(1), table(2)],
        moved=[SequenceMove(1, 5, 4, []), SequenceMove(2, 5, 4, [9])],
        ended=[2],
        preempted=[1],
        marks=[(9, "abcdef01")],
    )
    snapshot = EngineSnapshot(
        stats=StepStats(),
        block_size=16,
        blocks_per_cell=1,
        cell_states=[],
        running=[],
        waiting=[],
        changes=[change],
        tables=[table(1), table(2)],
        marks=[(9, "abcdef01")],
    )
    seen = own_snapshot(snapshot, lambda number: 20 if number == 2 else 0)
    (own,) = seen.changes
    assert (own.queued, own.ended, own.preempted, own.marks) == ([20], [20], [], [])
    assert [one.request_id for one in own.joined] == [20]
    assert own.moved == [SequenceMove(20, 5, 4, [9])]
    assert seen.tables is not None
    assert [one.request_id for one in seen.tables] == [20]
    assert seen.marks == []
    assert (own.step, own.num_used_blocks, own.num_cached_blocks) == (7, 2, 3)


def test_a_snapshot_without_tables_has_none() -> None:
    snapshot = EngineSnapshot(
        stats=StepStats(), block_size=16, blocks_per_cell=1, cell_states=[], running=[], waiting=[]
    )
    assert own_snapshot(snapshot, lambda _: 0) == snapshot
