"""Costs, limits and loads of small fleets."""

from typing import Any

from benchmarks.simulation.api_cost import ApiCost
from benchmarks.simulation.arrivals import Load, poisson
from benchmarks.simulation.step_cost import StepCost
from caravan.cli.bench.lengths import parse_lengths
from caravan.scheduler.config import EngineConfig

COST = StepCost(
    step_seconds=0.02,
    prefill_token_seconds=0.001,
    decode_row_seconds=0.002,
    kv_token_seconds=1e-6,
    prefill_context_seconds=1e-7,
)
FREE = ApiCost()


def limits(**changes: Any) -> EngineConfig:
    """Return the limits of a small replica."""
    defaults: dict[str, Any] = {
        "num_blocks": 256,
        "block_size": 8,
        "max_batch_tokens": 128,
        "max_num_seqs": 8,
        "max_model_len": 512,
    }
    return EngineConfig(**defaults | changes)


def poisson_load(
    rate: float, seconds: float, *, prompt: str = "32-200", output: str = "4-40", seed: int = 0, **changes: Any
) -> Load:
    """Return requests that arrive at random."""
    planned = poisson(parse_lengths(prompt), parse_lengths(output), rate, seconds, seed)
    return Load(planned=planned, seed=seed, **changes)
