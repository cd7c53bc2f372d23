"""ChangeRecorder: the changes of each step rebuild the block tables of the scheduler."""

import gc
import random
import weakref
from collections.abc import Sequence

import pytest

from caravan.scheduler.block_pool import hash_block, root_hash
from caravan.scheduler.change_recorder import (
    MAX_CHANGES,
    MAX_TABLE_BLOCKS,
    TABLES_SECONDS,
    ChangeRecorder,
    block_mark,
)
from caravan.scheduler.messages import EngineSnapshot
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.snapshots import MAX_PERIOD_SECONDS, MAX_SHARE, Snapshots
from caravan.scheduler.step_change import SequenceTable, StepChange
from tests.scheduler.requests import FakeClock, make_request
from tests.support.scheduler_steps import make_scheduler, step

Rows = dict[int, tuple[int, int, list[int]]]  # of running sequences: tokens, computed tokens, blocks


def rows_of(scheduler: Scheduler) -> Rows:
    return {
        one.request.request_id: (one.num_tokens, one.num_computed_tokens, [*one.block_table])
        for one in scheduler.running
    }


def rows_of_tables(tables: Sequence[SequenceTable]) -> Rows:
    return {one.request_id: (one.num_tokens, one.num_computed_tokens, [*one.blocks]) for one in tables}


def after(rows: Rows, change: StepChange) -> Rows:
    """Return the state after a change."""
    left = {*change.ended, *change.preempted}
    listed = rows_of_tables(change.joined)
    for move in change.moved:
        listed[move.request_id] = (
            move.num_tokens,
            move.num_computed_tokens,
            rows[move.request_id][2] + move.taken,
        )
    kept = {number: row for number, row in rows.items() if number not in left}
    return {number: (row[0] + 1, row[1] + 1, row[2]) for number, row in kept.items()} | listed


@pytest.mark.parametrize("seed", range(8))
def test_the_changes_of_each_step_rebuild_the_tables(seed: int) -> None:
    dice = random.Random(seed)
    scheduler = make_scheduler(num_blocks=14, max_model_len=32)
    recorder, rows, number, num_preempted = ChangeRecorder(), Rows(), 0, 0
    waiting: set[int] = set()
    for _ in range(300):
        if dice.random() < 0.3:
            number += 1
            prompt = [dice.randrange(2) for _ in range(dice.randrange(1, 14))]
            scheduler.add(make_request(number, prompt, max_tokens=dice.randrange(1, 18)))
            recorder.queue(number)
            waiting.add(number)
        if dice.random() < 0.05 and scheduler.running:
            scheduler.abort(dice.choice(scheduler.running).request.request_id)
        _, output = step(scheduler, dice.randrange(2))
        recorder.observe(scheduler, output.stats)
        changes, _, _ = recorder.take()
        assert len(changes) <= 1
        for change in changes:
            assert change.num_used_blocks == output.stats.num_used_blocks
            assert waiting.issuperset(change.queued)
            waiting -= {*change.queued}
            num_preempted += len(change.preempted)
            assert all(scheduler.waiting.has(one) for one in change.preempted)
            assert not any(scheduler.waiting.has(one) for one in change.ended)
            rows = after(rows, change)
        assert rows == rows_of(scheduler)
    assert num_preempted > 0
    assert not waiting


def test_a_decoding_batch_is_in_no_list_between_two_blocks() -> None:
    scheduler, recorder = make_scheduler(), ChangeRecorder()
    for number in (1, 2):
        scheduler.add(make_request(number, [number], max_tokens=9))
    for _ in range(2):
        recorder.observe(scheduler, step(scheduler)[1].stats)
    recorder.take()
    recorder.observe(scheduler, step(scheduler)[1].stats)
    ((_, *_, joined, moved, ended, preempted, _),) = (tuple(change_fields(one)) for one in recorder.take()[0])
    assert joined == moved == ended == preempted == []


def change_fields(change: StepChange) -> list[object]:
    return [getattr(change, name) for name in change.__struct_fields__]


def test_nothing_is_recorded_while_nothing_changes() -> None:
    scheduler, recorder = make_scheduler(), ChangeRecorder()
    recorder.observe(scheduler, scheduler.stats())
    assert len(recorder.take()[0]) == 1  # the first one
    for _ in range(3):
        recorder.observe(scheduler, scheduler.stats())
    assert recorder.take()[0] == []


def test_an_abort_between_two_steps_is_a_change_of_the_same_step() -> None:
    scheduler, recorder = make_scheduler(), ChangeRecorder()
    scheduler.add(make_request(1, [1, 2, 3], max_tokens=9))
    recorder.observe(scheduler, step(scheduler)[1].stats)
    scheduler.abort(1)
    recorder.observe(scheduler, scheduler.stats())
    first, second = recorder.take()[0]
    assert (first.step, second.step) == (1, 1)
    assert second.ended == [1]


def test_changes_have_their_age() -> None:
    clock = FakeClock()
    scheduler, recorder = make_scheduler(), ChangeRecorder(clock)
    scheduler.add(make_request(1, [1], max_tokens=9))
    for _ in range(3):
        recorder.observe(scheduler, step(scheduler)[1].stats)
        clock.seconds += 0.125
    assert [change.age_seconds for change in recorder.take()[0]] == [0.375, 0.25, 0.125]


def test_tables_come_at_the_start_on_request_and_every_few_seconds() -> None:
    clock = FakeClock()
    scheduler, recorder = make_scheduler(), ChangeRecorder(clock)
    scheduler.add(make_request(1, [1, 2, 3, 4, 5], max_tokens=9))
    recorder.observe(scheduler, step(scheduler)[1].stats)
    _, tables, marks = recorder.take()
    assert tables is not None
    assert rows_of_tables(tables) == rows_of(scheduler)
    assert [block for block, _ in marks] == scheduler.running[0].block_table[:1]
    assert recorder.take()[1] is None
    recorder.request_tables()
    assert recorder.take()[1] is not None
    clock.seconds += TABLES_SECONDS
    assert recorder.take()[1] is not None


def test_large_tables_come_on_request_only_and_have_no_marks() -> None:
    clock = FakeClock()
    num_blocks = MAX_TABLE_BLOCKS + 100
    scheduler = make_scheduler(num_blocks=num_blocks, max_model_len=4 * num_blocks, max_batch_tokens=4 * num_blocks)
    recorder = ChangeRecorder(clock)
    scheduler.add(make_request(1, [*range(4 * (MAX_TABLE_BLOCKS + 1))], max_tokens=9))
    recorder.observe(scheduler, step(scheduler)[1].stats)
    _, tables, marks = recorder.take()
    assert tables is not None
    assert len(tables[0].blocks) > MAX_TABLE_BLOCKS
    assert marks == []
    clock.seconds += 10 * TABLES_SECONDS
    assert recorder.take()[1] is None


def test_after_too_many_changes_tables_replace_them() -> None:
    scheduler, recorder = make_scheduler(max_model_len=10_000, num_blocks=3000), ChangeRecorder(FakeClock())
    scheduler.add(make_request(1, [1], max_tokens=9000))
    recorder.observe(scheduler, step(scheduler)[1].stats)
    recorder.take()
    for _ in range(MAX_CHANGES + 5):
        recorder.observe(scheduler, step(scheduler)[1].stats)
    changes, tables, _ = recorder.take()
    assert changes == []
    assert tables is not None
    assert rows_of_tables(tables) == rows_of(scheduler)
    recorder.observe(scheduler, step(scheduler)[1].stats)
    assert len(recorder.take()[0]) == 1


def test_equal_blocks_have_equal_marks_that_do_not_reveal_the_hash() -> None:
    def marks_of(recorder: ChangeRecorder) -> list[tuple[int, str]]:
        scheduler = make_scheduler(num_blocks=16)
        marks = []
        for number in (1, 2):
            scheduler.add(make_request(number, [1, 2, 3, 4, 9 + number], max_tokens=9))
            recorder.observe(scheduler, step(scheduler)[1].stats)
            marks += [mark for change in recorder.take()[0] for mark in change.marks]
        return marks

    ours, other = ChangeRecorder(), ChangeRecorder()
    (first, second), (elsewhere, _) = marks_of(ours), marks_of(other)
    assert first == second  # the second sequence shares the block
    assert first[1] != elsewhere[1]
    block_hash = hash_block(root_hash(""), [1, 2, 3, 4])
    assert block_mark(b"x", block_hash) != block_mark(b"y", block_hash) != block_hash.hex()[:8]


def test_snapshots_are_sent_as_often_as_asked_for_and_further_subscribers_get_tables() -> None:
    sent: list[EngineSnapshot] = []
    clock, scheduler = FakeClock(), make_scheduler()
    snapshots = Snapshots(sent.append, clock)
    snapshots.subscribe(0.25)
    scheduler.add(make_request(1, [1], max_tokens=30))
    snapshots.queue(1)
    for index in range(9):
        snapshots.after_step(scheduler, step(scheduler)[1].stats)
        clock.seconds += 0.125
        if index == 5:
            snapshots.subscribe(0.25)
    assert [len(one.changes) for one in sent] == [1, 2, 2, 2, 2]
    assert sent[0].changes[0].queued == [1]
    assert [one.tables is not None for one in sent] == [True, False, False, True, False]
    snapshots.subscribe(0.0)
    assert snapshots.period_seconds == 0.0


def test_without_subscribers_no_sequence_is_kept() -> None:
    """Their tokens would stay in memory until somebody subscribes again."""
    sent: list[EngineSnapshot] = []
    scheduler, snapshots = make_scheduler(), Snapshots(sent.append, FakeClock())
    snapshots.subscribe(0.25)
    scheduler.add(make_request(1, [1], max_tokens=9))
    snapshots.after_step(scheduler, step(scheduler)[1].stats)
    sequence = weakref.ref(scheduler.running[0])
    del scheduler
    gc.collect()
    assert sequence() is not None  # the next step would be compared with it
    snapshots.subscribe(0.0)
    gc.collect()
    assert sequence() is None


@pytest.mark.parametrize(
    ("snapshot_seconds", "period_seconds"), [(0.0001, 0.25), (0.005, 0.005 / MAX_SHARE), (0.5, MAX_PERIOD_SECONDS)]
)
def test_slow_snapshots_take_a_small_share_of_the_time(snapshot_seconds: float, period_seconds: float) -> None:
    sent: list[EngineSnapshot] = []
    clock, used, scheduler = FakeClock(), FakeClock(), make_scheduler()

    def send(snapshot: EngineSnapshot) -> None:
        sent.append(snapshot)
        used.seconds += snapshot_seconds

    snapshots = Snapshots(send, clock, used)
    snapshots.subscribe(0.25)
    snapshots.after_step(scheduler, scheduler.stats())
    while len(sent) == 1:
        clock.seconds += 0.05
        snapshots.after_step(scheduler, scheduler.stats())
    assert clock.seconds == pytest.approx(period_seconds, abs=0.051)
