"""CostFile: the measured costs of one model on one machine, as JSON."""

from pathlib import Path

import msgspec

from benchmarks.simulation.api_cost import ApiCost
from benchmarks.simulation.step_cost import StepCost
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import StartEngine


class CostFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `calibrate` measures and all other commands read."""

    model: str
    weights: str  # how they are stored and multiplied, for people
    measured: str  # time and commit
    machine: dict[str, str]
    start: StartEngine  # of the engine that was measured
    config: EngineConfig
    kv_bytes_per_token: int
    cost: StepCost
    api: ApiCost
    num_steps: int  # of the measurement
    median_step_error: float  # of a predicted step, as a part of the measured one

    def num_blocks(self, pool_bytes: int) -> int:
        """Return how many blocks a KV pool of this size has. Raises ValueError if it has none."""
        block_bytes = self.kv_bytes_per_token * self.config.block_size
        if pool_bytes < block_bytes:
            raise ValueError(
                f"A block of the KV pool has {block_bytes:,} bytes, the pool {pool_bytes:,}. Raise --pool."
            )
        return pool_bytes // block_bytes


def read_cost_file(path: Path) -> CostFile:
    """Return the costs in a file. Raises OSError or ValueError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=CostFile)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is not a file of `calibrate`: {error}") from None


def write_cost_file(path: Path, costs: CostFile) -> None:
    """Write the costs. Raises OSError."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(costs), indent=1) + b"\n")
