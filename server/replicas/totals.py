"""Totals: statistics and snapshots of several engines as those of one large engine."""

from collections.abc import Sequence

import msgspec

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import MAX_CELLS, MAX_WAITING, EngineSnapshot, StepOutput, StepStats

_GAUGES = ("num_running", "num_waiting", "num_blocks", "num_used_blocks", "num_cached_blocks")


def total_config(configs: Sequence[EngineConfig]) -> EngineConfig:
    """Return the limits of all replicas together: blocks and sequences are summed, the longest request is the shortest.

    There must be at least one.
    """
    return msgspec.structs.replace(
        configs[0],
        num_blocks=sum(config.num_blocks for config in configs),
        max_num_seqs=sum(config.max_num_seqs for config in configs),
        max_model_len=min(config.max_model_len for config in configs),
    )


class Totals:
    """The latest statistics and snapshot of each replica."""

    def __init__(self) -> None:
        self._stats: dict[str, StepStats] = {}
        self._snapshots: dict[str, EngineSnapshot] = {}
        self._num_steps = 0

    @property
    def stats(self) -> dict[str, StepStats]:
        """The statistics of the latest step of each replica."""
        return self._stats

    def connect(self, name: str, config: EngineConfig) -> None:
        """Add a replica that has computed no step yet."""
        self._stats[name] = StepStats(num_blocks=config.num_blocks)

    def lose(self, name: str) -> None:
        """Leave out a replica."""
        self._stats.pop(name, None)
        self._snapshots.pop(name, None)

    def step(self, name: str, output: StepOutput) -> StepOutput:
        """Store a step of a replica, and return it with the gauges of all of them; its counters stay its own."""
        self._stats[name] = output.stats
        self._num_steps += 1
        sums = {gauge: sum(getattr(one, gauge) for one in self._stats.values()) for gauge in _GAUGES}
        stats = msgspec.structs.replace(output.stats, step=self._num_steps, **sums)
        return msgspec.structs.replace(output, stats=stats)

    def snapshot(self, name: str, snapshot: EngineSnapshot) -> EngineSnapshot | None:
        """Store a snapshot of a replica, and return one of all replicas if each has sent one since the last.

        The pools of the replicas lie one after the other, by name.
        """
        self._snapshots[name] = snapshot
        if self._snapshots.keys() < self._stats.keys():
            return None
        parts = [self._snapshots[one] for one in sorted(self._snapshots)]
        self._snapshots = {}
        return parts[0] if len(parts) == 1 else _joined(parts)


def _joined(parts: Sequence[EngineSnapshot]) -> EngineSnapshot:
    """Return several snapshots as one of at most MAX_CELLS cells, each with the greatest state of its blocks."""
    states = [state for part in parts for state in part.cell_states]
    factor = -(-len(states) // MAX_CELLS)
    groups = [range(start, min(start + factor, len(states))) for start in range(0, len(states), factor)]
    stats = msgspec.structs.replace(
        parts[-1].stats, **{gauge: sum(getattr(part.stats, gauge) for part in parts) for gauge in _GAUGES}
    )
    return EngineSnapshot(
        stats=stats,
        block_size=parts[0].block_size,
        blocks_per_cell=factor * max(part.blocks_per_cell for part in parts),
        cell_states=[max(states[index] for index in group) for group in groups],
        running=[one for part in parts for one in part.running],
        waiting=[one for part in parts for one in part.waiting][:MAX_WAITING],
    )
