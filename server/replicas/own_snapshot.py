"""The part of a snapshot that one API process sees of a replica that several of them share."""

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from caravan.scheduler.messages import EngineSnapshot
from caravan.scheduler.step_change import SequenceTable, StepChange


def own_snapshot(snapshot: EngineSnapshot, own_id: Callable[[int], int]) -> EngineSnapshot:
    """Return a snapshot in which the requests of others have the number 0.

    `own_id` returns the number that the API process gave to a request of the engine, 0 if it is not its own. Changes
    and tables have its own requests only, and no marks: those of others would show which prompts are equal.
    """
    return replace(
        snapshot,
        running=[replace(one, request_id=own_id(one.request_id)) for one in snapshot.running],
        waiting=[replace(one, request_id=own_id(one.request_id)) for one in snapshot.waiting],
        changes=[_own_change(change, own_id) for change in snapshot.changes],
        tables=None if snapshot.tables is None else _own_tables(snapshot.tables, own_id),
        marks=[],
    )


def _own_change(change: StepChange, own_id: Callable[[int], int]) -> StepChange:
    return replace(
        change,
        queued=_own_ids(change.queued, own_id),
        joined=_own_tables(change.joined, own_id),
        moved=[replace(one, request_id=number) for one in change.moved if (number := own_id(one.request_id))],
        ended=_own_ids(change.ended, own_id),
        preempted=_own_ids(change.preempted, own_id),
        marks=[],
    )


def _own_ids(engine_ids: Sequence[int], own_id: Callable[[int], int]) -> list[int]:
    return [number for engine_id in engine_ids if (number := own_id(engine_id))]


def _own_tables(tables: Sequence[SequenceTable], own_id: Callable[[int], int]) -> list[SequenceTable]:
    return [replace(one, request_id=number) for one in tables if (number := own_id(one.request_id))]
