"""Measure the cost of observability: `python -m benchmarks.observability`.

First the time that the API process takes to record one step of 32 sequences (metrics, history), without the engine,
and the time that the engine takes to record what a step changed and for a snapshot, of which it makes four a second
for subscribers. Then the default model under load, in int8: intervals with and without a subscriber of
/v1/engine/events in turn, each first in every other pair, and the growth of the time of a step. Responses end one
after the other, so that contexts are equally long in all intervals. The subscriber discards what it reads, as if a
browser on another machine showed the page; with --browser it is a browser on this machine, which takes processor time
of its own.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import count

import httpx
import msgspec

from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.change_recorder import ChangeRecorder
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import Request, SequenceOutput, StepOutput, StepStats
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.snapshot import engine_snapshot
from caravan.scheduler.step_result import StepResult
from caravan.server.observe.metrics import Metrics
from caravan.server.observe.request_history import RequestHistory
from caravan.server.observe.request_record import RequestRecord
from caravan.server.operations.live_view import SNAPSHOT_SECONDS
from tests.server.web.chromium import chromium
from tests.support.running_server import RunningServer, running_server

NUM_SEQUENCES = 32
MAX_TOKENS = 600  # of a response


def main() -> None:
    """Print all measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each interval")
    parser.add_argument("--pairs", type=int, default=15, help="of intervals")
    parser.add_argument("--browser", action="store_true", help="subscribe with the page in headless chromium")
    arguments = parser.parse_args()
    microseconds = 1e6 * recording_seconds()
    print(f"recording a step of {NUM_SEQUENCES} sequences: {microseconds:.0f} microseconds", flush=True)
    options = ("--quantization", "int8", "--speculation", "off", "--kv-cache-memory", "2GiB")
    change_us, snapshot_ms = 1e6 * change_seconds(), 1000 * snapshot_seconds()
    print(f"finding what a step of {NUM_SEQUENCES} sequences changed: {change_us:.0f} microseconds", flush=True)
    part = 100 * snapshot_ms / 1000 / SNAPSHOT_SECONDS
    print(
        f"a snapshot of {NUM_SEQUENCES} sequences and 4,096 blocks: {snapshot_ms:.2f} ms, {part:.2f} % of engine time",
        flush=True,
    )
    with running_server("smollm2", *options) as server, load(server):
        plain, subscribed = intervals(
            server, arguments.seconds, arguments.pairs, browser if arguments.browser else subscriber
        )
    ratios = [after / before for before, after in zip(plain, subscribed, strict=True)]
    step_ms = 1000 * statistics.median(plain)
    print(f"a step takes {step_ms:.2f} ms, so recording takes {100 * microseconds / 1000 / step_ms:.2f} % of it")
    print(f"and with a subscriber the engine records changes in {100 * change_us / 1000 / step_ms:.2f} % of it")
    print(
        f"with a subscriber {100 * (statistics.median(ratios) - 1):+.2f} % (median of {len(ratios)} pairs; all:",
        end=" ",
    )
    print(", ".join(f"{100 * (ratio - 1):+.2f}" for ratio in ratios) + ")")


def recording_seconds(num_steps: int = 3000) -> float:
    """Return the seconds that metrics and history take for one step in which all sequences get a token."""
    metrics = Metrics("m", EngineConfig(num_blocks=4096, max_model_len=8192))
    history = RequestHistory()
    for number in range(NUM_SEQUENCES):
        record = RequestRecord(f"cmpl-{number}", f"{number}", "", time.monotonic())
        history.begin(record)
        history.queue(record, number, 0)
    stats = StepStats(num_running=NUM_SEQUENCES, num_blocks=4096, num_used_blocks=400, num_decode_tokens=NUM_SEQUENCES)
    outputs = [SequenceOutput(request_id=number, token_ids=[1]) for number in range(NUM_SEQUENCES)]
    step = StepOutput(outputs=outputs, stats=stats)
    started = time.perf_counter()
    for _ in range(num_steps):
        metrics.on_step(step)
        history.on_step(step)
        for _ in outputs:
            metrics.inter_token.observe(0.02)
    return (time.perf_counter() - started) / num_steps


def decoding_scheduler() -> Scheduler:
    """Return a scheduler whose sequences have read their prompts."""
    scheduler = Scheduler(EngineConfig(num_blocks=4096, max_model_len=8192))
    for number in range(NUM_SEQUENCES):
        prompt = [number, *range(300)]
        scheduler.add(
            Request(request_id=number, prompt_token_ids=prompt, params=SamplingParams(seed=0, max_tokens=100))
        )
    while scheduler.waiting:
        run_step(scheduler)
    return scheduler


def run_step(scheduler: Scheduler) -> StepStats:
    """Run a step without a model and return its statistics."""
    plan = scheduler.schedule()
    return scheduler.commit(plan, StepResult([Sample(1) for one in plan if one.wants_logits])).stats


def change_seconds(num_steps: int = 80) -> float:
    """Return the seconds that the engine takes to find out what a step changed."""
    scheduler, recorder, seconds = decoding_scheduler(), ChangeRecorder(), 0.0
    recorder.observe(scheduler, scheduler.stats())
    for _ in range(num_steps):
        stats = run_step(scheduler)
        started = time.perf_counter()
        recorder.observe(scheduler, stats)
        seconds += time.perf_counter() - started
    return seconds / num_steps


def snapshot_seconds(num_snapshots: int = 200) -> float:
    """Return the seconds that the engine takes to make and encode one snapshot, with a quarter second of changes."""
    scheduler, recorder = decoding_scheduler(), ChangeRecorder()
    for _ in range(12):
        recorder.observe(scheduler, run_step(scheduler))
    changes, tables, marks = recorder.take()
    started = time.perf_counter()
    for index in range(num_snapshots):
        parts = (changes, tables, marks) if index % 20 == 0 else (changes, None, [])
        msgspec.msgpack.encode(engine_snapshot(scheduler, *parts))
    return (time.perf_counter() - started) / num_snapshots


@contextmanager
def load(server: RunningServer) -> Iterator[None]:
    """Keep the engine busy with long responses that end one after the other."""
    has_ended = threading.Event()
    numbers = count()

    def ask(index: int) -> None:
        num_tokens = MAX_TOKENS * (index + 1) // NUM_SEQUENCES
        with httpx.Client(base_url=server.url, timeout=300, trust_env=False) as http:
            while not has_ended.is_set():
                prompt = f"{next(numbers)}. Once upon a time"
                body = {"prompt": prompt, "model": "smollm2", "ignore_eos": True, "temperature": 1}
                http.post("/v1/completions", json=body | {"max_tokens": num_tokens}).raise_for_status()
                num_tokens = MAX_TOKENS

    with ThreadPoolExecutor(NUM_SEQUENCES) as clients:
        asking = [clients.submit(ask, index) for index in range(NUM_SEQUENCES)]
        while server.metric("iteration_tokens_count") < MAX_TOKENS:  # then contexts have all lengths
            time.sleep(0.5)
        try:
            yield
        finally:
            has_ended.set()
    for client in asking:
        client.result()


def intervals(
    server: RunningServer,
    seconds: float,
    num_pairs: int,
    observer: Callable[[RunningServer], AbstractContextManager[None]],
) -> tuple[list[float], list[float]]:
    """Return the mean seconds of a step in each interval without and with a subscriber."""
    plain, subscribed = [], []
    for pair in range(num_pairs):
        for is_subscribed in (pair % 2 == 1, pair % 2 == 0):
            if is_subscribed:
                with observer(server):
                    subscribed.append(mean_step_seconds(server, seconds))
            else:
                plain.append(mean_step_seconds(server, seconds))
    return plain, subscribed


@contextmanager
def subscriber(server: RunningServer) -> Iterator[None]:
    """Subscribe to the events of the engine."""
    has_ended = threading.Event()

    def read() -> None:
        with (
            httpx.Client(base_url=server.url, timeout=30, trust_env=False) as http,
            http.stream("GET", "/v1/engine/events") as events,
        ):
            events.raise_for_status()
            for _ in events.iter_raw():
                if has_ended.is_set():
                    return

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.5)
    yield
    has_ended.set()
    thread.join()


@contextmanager
def browser(server: RunningServer) -> Iterator[None]:
    """Show the engine's page in a browser on this machine."""
    with chromium() as started:
        page = started.new_page()
        page.goto(f"{server.url}/#engine")
        page.wait_for_timeout(2000)
        yield


def mean_step_seconds(server: RunningServer, seconds: float) -> float:
    """Return the mean time of a step over `seconds`."""
    before, started = server.metric("iteration_tokens_count"), time.perf_counter()
    time.sleep(seconds)
    after, ended = server.metric("iteration_tokens_count"), time.perf_counter()
    return (ended - started) / (after - before)


if __name__ == "__main__":
    main()
