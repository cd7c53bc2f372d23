"""Snapshots: queue, batch and pool at one moment, for the live view."""

from collections.abc import Sequence as Seq
from itertools import chain

from caravan.scheduler.messages import (
    CACHED,
    MAX_CELLS,
    MAX_WAITING,
    SHARED,
    USED,
    EngineSnapshot,
    SequenceSnapshot,
)
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.sequence import Sequence
from caravan.scheduler.step_change import SequenceTable, StepChange


def engine_snapshot(
    scheduler: Scheduler,
    changes: Seq[StepChange] = (),
    tables: Seq[SequenceTable] | None = None,
    marks: Seq[tuple[int, str]] = (),
) -> EngineSnapshot:
    """Return a snapshot of the scheduler between two steps, with what a ChangeRecorder has recorded."""
    pool = scheduler.pool
    blocks_per_cell = -(-pool.num_blocks // MAX_CELLS)
    num_cells = -(-pool.num_blocks // blocks_per_cell)
    states = bytearray(num_cells)
    for block in pool.cached_blocks():
        states[block // blocks_per_cell] = CACHED
    for sequence in scheduler.running:
        for block in sequence.block_table:
            cell = block // blocks_per_cell
            states[cell] = max(states[cell], SHARED if pool.is_shared(block) else USED)
    step_tokens = {one.sequence.request.request_id: one.num_rows for one in scheduler.last_plan}
    queue = chain(scheduler.waiting, scheduler.waiting.compiling.values())
    waiting = [sequence for _, sequence in zip(range(MAX_WAITING), queue, strict=False)]
    return EngineSnapshot(
        stats=scheduler.stats(),
        block_size=scheduler.config.block_size,
        blocks_per_cell=blocks_per_cell,
        cell_states=list(states),
        running=[_sequence_snapshot(sequence, step_tokens) for sequence in scheduler.running],
        waiting=[_sequence_snapshot(sequence, {}) for sequence in waiting],
        changes=[*changes],
        tables=None if tables is None else [*tables],
        marks=[*marks],
    )


def _sequence_snapshot(sequence: Sequence, step_tokens: dict[int, int]) -> SequenceSnapshot:
    return SequenceSnapshot(
        request_id=sequence.request.request_id,
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_tokens=sequence.num_tokens,
        num_computed_tokens=sequence.num_computed_tokens,
        max_tokens=sequence.request.params.max_tokens,
        num_blocks=len(sequence.block_table),
        num_step_tokens=step_tokens.get(sequence.request.request_id, 0),
        wait_reason=sequence.wait_reason,
    )
