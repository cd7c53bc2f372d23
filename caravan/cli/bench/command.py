"""`caravan bench`: measure, print the tables and write the files."""

import asyncio
import json
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from caravan.cli.bench import BenchFailed
from caravan.cli.bench.endpoint import Endpoint
from caravan.cli.bench.run import BenchOptions, Run, run_bench
from caravan.cli.bench.table import print_reports


def bench_command(options: BenchOptions, *, json_path: Path | None, plot_path: Path | None, console: Console) -> bool:
    """Measure, print tables and write files; return whether every request succeeded.

    Ctrl-C ends the measurement, not the report. Raises BenchFailed.
    """
    for path in (json_path, plot_path):
        if path is not None and not path.parent.is_dir():
            raise BenchFailed(f"Cannot write {path}: {path.parent} is not a folder. Choose another path.")
    if plot_path is not None:
        from caravan.cli.bench.plot import check_plot, write_plot

        check_plot(plot_path)
    runs: list[Run] = []
    endpoints: list[Endpoint] = []
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    is_interrupted = False
    with _progress(console) as progress:

        def on_start(endpoint: Endpoint) -> None:
            endpoints.append(endpoint)
            console.print(
                f"{endpoint.model} at {endpoint.connections.url}{endpoint.path}: {_lengths(options)}", highlight=False
            )
            for note in endpoint.notes:
                console.print(note, highlight=False, markup=False)

        try:
            with asyncio.Runner(loop_factory=_event_loop) as runner:
                runner.run(run_bench(options, runs, on_start, _Bars(progress)))
        except KeyboardInterrupt:
            is_interrupted = True
    if is_interrupted:
        console.print("Interrupted. The results cover the requests that had finished.")
    measured = [run for run in runs if run.measurements]
    if not measured:
        return False
    reports = [run.report(options) for run in measured]
    print_reports(console, reports)
    if json_path is not None:
        document = {"started": started, "is_interrupted": is_interrupted, "options": _as_json(options)}
        document["endpoint"] = {
            "model": endpoints[0].model,
            "takes_token_ids": endpoints[0].takes_token_ids,
            "notes": endpoints[0].notes,
        }
        document["runs"] = [
            asdict(report) | {"requests": [_request(measurement) for measurement in run.measurements]}
            for report, run in zip(reports, measured, strict=True)
        ]
        json_path.write_text(json.dumps(document, indent=1) + "\n")
    if plot_path is not None:
        write_plot(plot_path, measured)
    return not any(report.num_errors for report in reports)


class _Bars:
    """Shows each run's progress; called after each request."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._tasks: dict[int, Any] = {}

    def __call__(self, run: Run) -> None:
        if self._progress is None:
            return
        if id(run) not in self._tasks:
            self._tasks[id(run)] = self._progress.add_task(run.load, total=run.num_planned)
        self._progress.update(self._tasks[id(run)], completed=len(run.measurements))


def _progress(console: Console) -> Any:
    """Return a progress bar for a terminal; it is drawn rarely, since drawing slows a local server."""
    if not console.is_terminal:
        return nullcontext()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, refresh_per_second=2)


def _event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # on Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _lengths(options: BenchOptions) -> str:
    if options.trace is not None:
        return f"lengths of {options.trace.name}"
    shared = f"{options.shared_prefix_tokens} shared and " if options.shared_prefix_tokens else ""
    return f"{shared}{options.prompt.text} tokens in, {options.output.text} out"


def _as_json(options: BenchOptions) -> dict[str, Any]:
    hidden = replace(options, api_key=None)
    fields = {name: getattr(hidden, name) for name in hidden.__dataclass_fields__ if name != "api_key"}
    texts = {"prompt": options.prompt.text, "output": options.output.text}
    return fields | texts | {"trace": None if options.trace is None else str(options.trace)}


def _request(measurement: Any) -> dict[str, Any]:
    return {
        "due": measurement.due,
        "sent": measurement.sent,
        "first_token": measurement.first_token_seconds,
        "seconds": measurement.seconds,
        "prompt_tokens": measurement.prompt_tokens,
        "output_tokens": measurement.output_tokens,
        "error": measurement.error,
    }
