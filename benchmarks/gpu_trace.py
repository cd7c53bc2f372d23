"""Part `trace`: a profiler's trace of decode steps, and what it says of kernels and the gaps between them."""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_sizes import Sizes, random_llama
from benchmarks.gpu_streams import (
    StepTimes,
    checked_step,
    keep_streams,
    model_len,
    running_engine,
    start_decoding,
    variants,
)

NUM_KERNELS = 12  # that are listed
DEVICE_EVENTS = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
HOST_EVENTS = frozenset({"cpu_op"})  # where there is no GPU

Span = tuple[str, float, float]  # name, start and duration in microseconds


def trace_steps(sizes: Sizes, out: Path) -> Iterator[dict[str, Any]]:
    """Yield what a trace of decode steps says; the trace is written to `out`, for chrome://tracing or Perfetto."""
    streams = sizes.streams[len(sizes.streams) // 2]
    sizes = replace(sizes, streams=(streams,))  # no prompts and graphs of more
    model = random_llama(sizes, "none", sizes.shapes.num_layers, max_position=model_len(sizes))
    variant = variants(sizes)[0]
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if sizes.is_gpu else [])]
    path = out / "trace.json.gz"
    with running_engine(model, sizes, variant, StepTimes(model.device, waits=False)) as engine:
        start_decoding(engine, streams)
        keep_streams(engine, sizes, streams)
        with profile(activities=activities) as profiler:
            for _ in range(sizes.trace_steps):
                checked_step(engine)
            if sizes.is_gpu:
                torch.cuda.synchronize()
        profiler.export_chrome_trace(str(path))
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    spans = spans_of(events, DEVICE_EVENTS if sizes.is_gpu else HOST_EVENTS)
    yield {
        "variant": variant.name,
        "streams": streams,
        "steps": sizes.trace_steps,
        "file": path.name,
        **summary(spans, sizes.trace_steps),
    }


def spans_of(events: Iterable[dict[str, Any]], categories: frozenset[str]) -> list[Span]:
    """Return the spans of a Chrome trace's events in these categories, by their start."""
    found = [
        (str(event["name"]), float(event["ts"]), float(event["dur"]))
        for event in events
        if event.get("ph") == "X" and event.get("cat") in categories
    ]
    return sorted(found, key=lambda span: span[1])


def summary(spans: list[Span], num_steps: int) -> dict[str, Any]:
    """Return microseconds of a step that kernels run, gaps in which none runs, and the longest kernels.

    Kernels are listed as [name, launches of a step, microseconds of a step]. Raises ValueError without a span.
    """
    if not spans:
        raise ValueError("The trace has no kernels.")
    totals: defaultdict[str, list[float]] = defaultdict(list)
    gaps: list[float] = []
    busy, end = 0.0, spans[0][1]
    for name, start, duration in spans:
        totals[name].append(duration)
        if start > end:
            gaps.append(start - end)
        busy += max(0.0, start + duration - max(start, end))
        end = max(end, start + duration)
    kernels = sorted(totals.items(), key=lambda item: -sum(item[1]))[:NUM_KERNELS]
    ordered = sorted(gaps)
    return {
        "launches": round(len(spans) / num_steps, 1),
        "busy_us": round(busy / num_steps, 1),
        "gaps_us": round(sum(gaps) / num_steps, 1),
        "median_gap_us": round(ordered[len(ordered) // 2], 2) if ordered else 0.0,
        "longest_gaps_us": [round(gap, 1) for gap in ordered[:-6:-1]],
        "kernels": [
            [name[:60], round(len(durations) / num_steps, 1), round(sum(durations) / num_steps, 1)]
            for name, durations in kernels
        ],
    }
