"""Totals: the statistics and snapshots of several engines as those of one."""

import msgspec

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import MAX_CELLS, EngineSnapshot, SequenceSnapshot, StepOutput, StepStats
from caravan.server.replicas.totals import Totals, total_config

CONFIG = EngineConfig(num_blocks=100, max_num_seqs=8, max_model_len=512)


def totals() -> Totals:
    made = Totals()
    for name in ("a", "b"):
        made.connect(name, CONFIG)
    return made


def snapshot(number: int, *, num_cells: int = 3, blocks_per_cell: int = 1) -> EngineSnapshot:
    sequence = SequenceSnapshot(
        request_id=number, num_prompt_tokens=1, num_tokens=1, num_computed_tokens=1, max_tokens=1, num_blocks=1
    )
    return EngineSnapshot(
        stats=StepStats(num_running=1, num_waiting=2, num_blocks=100, step=number),
        block_size=16,
        blocks_per_cell=blocks_per_cell,
        cell_states=[0, 2, *([1] * (num_cells - 2))],
        running=[sequence],
        waiting=[sequence, sequence],
    )


def test_limits_of_replicas_are_summed_but_a_request_must_fit_into_each() -> None:
    total = total_config([CONFIG, msgspec.structs.replace(CONFIG, num_blocks=60, max_model_len=300)])
    assert (total.num_blocks, total.max_num_seqs, total.max_model_len) == (160, 16, 300)


def test_gauges_are_summed_over_replicas_and_counters_are_of_the_step() -> None:
    made = totals()
    made.step("a", StepOutput(outputs=[], stats=StepStats(num_running=3, num_used_blocks=9, num_blocks=100, step=70)))
    total = made.step("b", StepOutput(outputs=[], stats=StepStats(num_running=1, num_decode_tokens=5, num_blocks=100)))
    stats = total.stats
    assert (stats.num_running, stats.num_used_blocks, stats.num_blocks, stats.step) == (4, 9, 200, 2)
    assert stats.num_decode_tokens == 5
    made.lose("a")
    assert made.step("b", total).stats.num_blocks == 200  # `total` itself says so: it is the only one
    assert [*made.stats] == ["b"]


def test_a_snapshot_is_complete_when_each_replica_has_sent_one() -> None:
    made = totals()
    assert made.snapshot("b", snapshot(7)) is None
    joined = made.snapshot("a", snapshot(4))
    assert joined is not None
    assert joined.cell_states == [0, 2, 1, 0, 2, 1]
    assert [one.request_id for one in joined.running] == [4, 7]
    assert (joined.stats.num_running, joined.stats.num_waiting, joined.stats.num_blocks) == (2, 4, 200)
    assert made.snapshot("a", snapshot(4)) is None


def test_a_snapshot_of_one_replica_stays_as_it_is() -> None:
    made = totals()
    made.lose("b")
    assert made.snapshot("a", snapshot(4)) == snapshot(4)


def test_large_pools_together_have_no_more_cells_than_one() -> None:
    made = totals()
    made.snapshot("a", snapshot(4, num_cells=2000, blocks_per_cell=2))
    joined = made.snapshot("b", snapshot(7, num_cells=2001))
    assert joined is not None
    assert len(joined.cell_states) == 2001 <= MAX_CELLS
    assert joined.blocks_per_cell == 4
    assert joined.cell_states[:2] == [2, 1]
