"""Calibration: measure the costs of a model on this machine."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.simulation.api_cost import ApiCost
from benchmarks.simulation.arrivals import Load, burst, cut, poisson
from benchmarks.simulation.cost_file import CostFile
from benchmarks.simulation.recorder import record
from benchmarks.simulation.step_cost import MeasuredStep, StepCost, fit, median_error
from caravan.cli.bench.lengths import parse_lengths
from caravan.scheduler.engine import Engine
from caravan.scheduler.loaded_model import start_engine
from caravan.scheduler.messages import StartEngine

LOAD_PARTS = (0.4, 0.7)  # of the saturated rate, after a burst
PROMPT, OUTPUT = "16-900", "8-120"
WARM_UP_REQUESTS = 4


def calibrate(
    start: StartEngine, *, model: str, seconds: float, seed: int, report: Callable[[str], object]
) -> CostFile:
    """Run a burst and then two loads of `seconds` seconds each, and return the costs that fit all steps of the three.

    Raises what `loaded_model.start_engine` raises, and ValueError if there are too few steps.
    """
    engine, ready, _ = start_engine(start)
    report(f"{model}: {ready.weights}; {ready.config.num_tokens:,} tokens in the pool")
    warm_up(engine)
    cost, steps = measure_cost(engine, seconds=seconds, seed=seed, report=report)
    return CostFile(
        model=model,
        weights=ready.weights,
        measured=f"{time.strftime('%Y-%m-%d')}, commit {commit()}",
        machine=machine(),
        start=start,
        config=engine.config,
        kv_bytes_per_token=ready.kv_cache_bytes // ready.config.num_tokens,
        cost=cost,
        api=ApiCost(),
        num_steps=len(steps),
        median_step_error=median_error(cost, steps),
    )


def measure_cost(
    engine: Engine, *, seconds: float, seed: int, report: Callable[[str], object]
) -> tuple[StepCost, list[MeasuredStep]]:
    """Run a burst and then two loads of `seconds` seconds each; return the cost that fits all steps, and the steps."""
    steps: list[MeasuredStep] = []
    prompt, output = parse_lengths(PROMPT), parse_lengths(OUTPUT)
    room = engine.config.max_model_len // 2  # of a prompt, and of an output
    planned = burst(prompt, output, engine.config.max_num_seqs, seed)
    loads = [Load(planned=cut(planned, room, room - 1), seed=seed)]
    while loads:
        load = loads.pop(0)
        journal, measured = record(engine, load.arrivals(), load.prompts())
        figures = journal.figures()
        report(f"{figures.num_requests} requests in {figures.seconds:.1f} s, {len(measured)} steps")
        if not steps:
            rates = [part * figures.requests_per_second for part in LOAD_PARTS]
            loads = [
                Load(planned=cut(poisson(prompt, output, rate, seconds, at), room, room - 1), seed=at)
                for at, rate in enumerate(rates, seed + 1)
            ]
        steps += measured
    return fit(steps), steps


def warm_up(engine: Engine) -> None:
    """Run some requests, so that memory is allocated and kernels are loaded."""
    planned = burst(parse_lengths("600"), parse_lengths("8"), WARM_UP_REQUESTS, seed=-1)
    load = Load(planned=cut(planned, engine.config.max_model_len // 2, None), seed=-1)
    record(engine, load.arrivals(), load.prompts())


def commit() -> str:
    """Return the commit of this source, with a mark if it was changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
