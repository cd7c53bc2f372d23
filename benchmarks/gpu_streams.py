"""Parts `engine bf16` and `engine int4`: tokens a second of 1, 32 and 256 streams, graphs and overlap on and off."""

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from benchmarks.gpu_clock import Moment, moment, seconds_between, wait_for
from benchmarks.gpu_costs import roof
from benchmarks.gpu_results import guarded, no_logged_errors
from benchmarks.gpu_shapes import BFLOAT16, INT4, Format, Gpu
from benchmarks.gpu_sizes import Sizes, random_llama
from caravan.model.cuda.llama import CudaLlama
from caravan.model.cuda.sampler import CudaSampler
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.block_pool import num_blocks_for
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.engine import Engine
from caravan.scheduler.messages import Request
from caravan.scheduler.overlap import Pending
from caravan.scheduler.overlapped_engine import OverlappedEngine
from caravan.scheduler.sampling_launch import HostSamples
from caravan.scheduler.step_graph import cuda_graph_capture, without_graph

BLOCK_SIZE = 16
MOST_FAILURES = 3  # messages of a result
COMPILING_SHARE = 0.25  # of the prompts, which are not measured: kernels are compiled in their steps


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How an engine runs its steps."""

    name: str
    has_graphs: bool
    overlaps: bool
    is_serial_engine: bool = False  # Engine, which samples on the host


VARIANTS = (
    Variant(name="graphs, overlap", has_graphs=True, overlaps=True),
    Variant(name="graphs", has_graphs=True, overlaps=False),
    Variant(name="overlap", has_graphs=False, overlaps=True),
    Variant(name="neither", has_graphs=False, overlaps=False),
    Variant(name="Engine, sampling on the host", has_graphs=False, overlaps=False, is_serial_engine=True),
)


def variants(sizes: Sizes) -> list[Variant]:
    """Return the variants that the device can have, the fastest first: without a GPU there are no graphs."""
    return [variant for variant in VARIANTS if sizes.is_gpu or not variant.has_graphs]


class StepTimes:
    """Lets the device do the work of steps, and measures when it begins and ends each."""

    def __init__(self, device: torch.device, *, waits: bool) -> None:
        """With `waits`, a step is over before the host goes on: nothing overlaps."""
        self._device, self._waits = device, waits
        self._steps: list[tuple[Moment, Moment]] = []

    def submit(self, work: Callable[[], Pending]) -> Pending:
        """Do the work of a step."""
        started = moment(self._device)
        pending = work()
        self._steps.append((started, moment(self._device)))
        return HostSamples(torch.empty(0), pending.result()) if self._waits else pending

    def take(self) -> dict[str, float]:
        """Return the milliseconds of a step on the device and microseconds to the next one, and forget the steps."""
        steps, self._steps = self._steps, []
        if len(steps) < 2:
            return {}
        gaps = [seconds_between(end, begin) for (_, end), (begin, _) in pairwise(steps)]
        return {
            "device_ms": round(1e3 * statistics.median(seconds_between(*step) for step in steps), 3),
            "gap_us": round(1e6 * statistics.median(gaps), 1),
            "longest_gap_us": round(1e6 * max(gaps), 1),
        }


def measure_streams(sizes: Sizes, weights: Format, gpu: Gpu | None) -> Iterator[dict[str, Any]]:
    """Yield the speed of each variant of the engine at each number of streams; a variant that fails is a result, too.

    `gap_us`: the median time between the end of a step on the device and the start of the next one.
    """
    model = random_llama(
        sizes, "int4" if weights == INT4 else "none", sizes.shapes.num_layers, max_position=model_len(sizes)
    )
    for variant in variants(sizes):
        for result in guarded(variant.name, _results(model, sizes, variant)):
            share = {}
            if gpu is not None and "streams" in result:
                most = roof(sizes.shapes, weights, result["streams"], gpu, round(result["context"]))
                share = {"share_of_roof": round(result["tokens_per_second"] / most, 3)}
            yield {"weights": weights.name, "variant": variant.name, **result, **share}
        release_memory(sizes)


def _results(model: CudaLlama, sizes: Sizes, variant: Variant) -> Iterator[dict[str, Any]]:
    """Yield the speed of a variant. The engine ends with this generator, so there is one KV pool at a time."""
    times = StepTimes(model.device, waits=not variant.overlaps)
    with no_logged_errors(), running_engine(model, sizes, variant, times) as engine:
        yield from _measure(engine, sizes, times)


@contextmanager
def running_engine(model: CudaLlama, sizes: Sizes, variant: Variant, times: StepTimes) -> Iterator[Engine]:
    """Give an engine in which the most streams are waiting; at the end it has no graphs and can be collected."""
    engine = make_engine(model, sizes, variant, times)
    choose = random.Random(0)
    for index in range(sizes.streams[-1]):
        prompt = [choose.randrange(sizes.shapes.vocab_size) for _ in range(sizes.context)]
        params = SamplingParams(seed=index, max_tokens=model_len(sizes), temperature=0.8, top_p=0.9)
        engine.add(Request(request_id=index, prompt_token_ids=prompt, params=params))
    gc.collect()
    gc.freeze()  # as the engine process does on a GPU
    try:
        yield engine
    finally:
        if isinstance(engine, OverlappedEngine):
            engine.device_steps.release_graphs()
        gc.unfreeze()


def release_memory(sizes: Sizes) -> None:
    """Release what nothing refers to any more: an engine and its parts refer to each other."""
    gc.collect()
    if sizes.is_gpu:
        torch.cuda.empty_cache()


def make_engine(model: CudaLlama, sizes: Sizes, variant: Variant, times: StepTimes) -> Engine:
    """Return an engine with room for the most streams."""
    config = EngineConfig(
        num_blocks=(sizes.streams[-1] + 1) * num_blocks_for(model_len(sizes), BLOCK_SIZE),
        block_size=BLOCK_SIZE,
        max_batch_tokens=sizes.max_batch_tokens,
        max_num_seqs=sizes.streams[-1],
        max_model_len=model_len(sizes),
    )
    if variant.is_serial_engine:
        return Engine(model, config, torch.bfloat16, model.device)
    engine = OverlappedEngine(
        model,
        config,
        torch.bfloat16,
        model.device,
        CudaSampler(config.max_num_seqs, sizes.shapes.vocab_size, model.device),
        capture=cuda_graph_capture() if variant.has_graphs else without_graph,
        submit=times.submit,
    )
    if variant.has_graphs:
        engine.warm_up()
    return engine


def model_len(sizes: Sizes) -> int:
    """Return the tokens that a stream has at most when all numbers of streams are measured, in whole blocks."""
    num_steps = len(sizes.streams) * (sizes.decode_steps + sizes.settling_steps) + sizes.trace_steps
    num_prefill_steps = sizes.context * sizes.streams[-1] // sizes.max_batch_tokens  # in which the first ones decode
    return num_blocks_for(sizes.context + num_steps + 2 * num_prefill_steps + 32, BLOCK_SIZE) * BLOCK_SIZE


def start_decoding(engine: Engine, num_streams: int) -> None:
    """Compute the prompts that are left, until each stream decodes."""
    while len(engine.scheduler.running) < num_streams or not all(
        sequence.num_output_tokens for sequence in engine.scheduler.running
    ):
        checked_step(engine)


def num_prompt_tokens(engine: Engine) -> int:
    """Return the tokens of prompts that are computed."""
    return sum(
        min(sequence.num_computed_tokens, len(sequence.request.prompt_token_ids))
        for sequence in engine.scheduler.running
    )


def keep_streams(engine: Engine, sizes: Sizes, number: int) -> None:
    """Abort all streams but a number of them, and let the others settle."""
    for sequence in engine.scheduler.running[number:]:
        engine.scheduler.abort(sequence.request.request_id)
    for _ in range(sizes.settling_steps):
        checked_step(engine)


def checked_step(engine: Engine) -> int:
    """Run a step and return the number of its tokens; raises RuntimeError if a stream ends, which is a failure."""
    outputs = engine.step().outputs
    ended = [f"{output.finish_reason}: {output.error}" for output in outputs if output.finish_reason is not None]
    if ended:
        raise RuntimeError(f"{len(ended)} streams ended: {'; '.join(ended[:MOST_FAILURES])}")
    return sum(len(output.token_ids) for output in outputs)


def _measure(engine: Engine, sizes: Sizes, times: StepTimes) -> Iterator[dict[str, Any]]:
    """Yield the speed of prompts, then of decode steps from the most streams to the fewest."""
    device, num_tokens = torch.device(sizes.device), sizes.context * sizes.streams[-1]
    while num_prompt_tokens(engine) < COMPILING_SHARE * num_tokens:
        checked_step(engine)
    num_left = num_tokens - num_prompt_tokens(engine)
    started = time.perf_counter()  # a step can be ahead now, as at the end
    start_decoding(engine, sizes.streams[-1])
    seconds = time.perf_counter() - started
    yield {"prompt_tokens_per_second": round(num_left / seconds, 1)}
    for number in reversed(sizes.streams):
        keep_streams(engine, sizes, number)
        times.take()
        wait_for(device)
        started = time.perf_counter()
        num_tokens = sum(checked_step(engine) for _ in range(sizes.decode_steps))
        wait_for(device)  # as at the start, a step that is ahead is over
        seconds = time.perf_counter() - started
        contexts = [len(sequence.token_ids) for sequence in engine.scheduler.running]
        yield {
            "streams": number,
            "context": round(statistics.mean(contexts) - sizes.decode_steps / 2, 1),
            "tokens_per_second": round(num_tokens / seconds, 1),
            "step_ms": round(1e3 * seconds / sizes.decode_steps, 3),
            **times.take(),
        }


def measure_bf16(sizes: Sizes, gpu: Gpu | None) -> Iterator[dict[str, Any]]:
    """Yield the results with weights in bfloat16."""
    return measure_streams(sizes, BFLOAT16, gpu)


def measure_int4(sizes: Sizes, gpu: Gpu | None) -> Iterator[dict[str, Any]]:
    """Yield the results with the layers' weights in 4 bits."""
    return measure_streams(sizes, INT4, gpu)
