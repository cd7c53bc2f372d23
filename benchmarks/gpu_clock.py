"""Times on a device: events of a GPU's stream, or the clock where kernels are interpreted."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Moment = torch.cuda.Event | float
NUM_MEASUREMENTS = 5


def moment(device: torch.device) -> Moment:
    """Return when the device is done with all that it was given so far."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has no types for it
    event.record()
    return event


def seconds_between(earlier: Moment, later: Moment) -> float:
    """Return the seconds between two moments on one device; waits for the later one."""
    if isinstance(earlier, float) or isinstance(later, float):
        assert isinstance(earlier, float)
        assert isinstance(later, float)
        return later - earlier
    later.synchronize()
    return 1e-3 * float(earlier.elapsed_time(later))


def wait_for(device: torch.device) -> None:
    """Wait until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def launch_seconds(launches: Sequence[Callable[[], object]], count: int, device: torch.device) -> float:
    """Return the time of one of `count` launches, taken in turn, that run one after the other on the device.

    On a GPU they are recorded as a graph, so that the host's time is not measured. Median of several runs.
    """
    with torch.inference_mode():
        for launch in launches:
            launch()  # the first one compiles

        def run() -> None:
            for index in range(count):
                launches[index % len(launches)]()

        replay: Callable[[], object] = run
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            graph.replay()
            replay = graph.replay
        times = []
        for _ in range(NUM_MEASUREMENTS if device.type == "cuda" else 1):
            started = moment(device)
            replay()
            times.append(seconds_between(started, moment(device)))
    return statistics.median(times) / count
