"""Workload: which requests are sent, and when."""

import csv
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from caravan.cli.bench.lengths import Lengths

_TRACE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True)
class PlannedRequest:
    """One request of a load."""

    prompt_tokens: int  # after the shared prefix
    output_tokens: int
    arrival_seconds: float | None = None  # after the start; None: as soon as an earlier request has ended


def steady_requests(prompt: Lengths, output: Lengths, seed: int) -> Iterator[PlannedRequest]:
    """Yield requests without end for a closed loop."""
    source = random.Random(seed)  # noqa: S311  # the same again, not a secret
    while True:
        yield PlannedRequest(prompt.draw(source), output.draw(source))


def poisson_requests(prompt: Lengths, output: Lengths, rate: float, seed: int) -> Iterator[PlannedRequest]:
    """Yield requests without end that arrive independently of each other, `rate` a second on average."""
    gaps, now = random.Random(f"arrivals {seed}"), 0.0  # noqa: S311  # the same again, not a secret
    for request in steady_requests(prompt, output, seed):
        yield PlannedRequest(request.prompt_tokens, request.output_tokens, now)
        now += gaps.expovariate(rate)


def trace_requests(path: Path, time_scale: float) -> list[PlannedRequest]:
    """Return the requests of a trace; the times between them are multiplied by `time_scale`.

    The file is CSV with the columns TIMESTAMP, ContextTokens and GeneratedTokens, as Azure's public traces of language
    models have them (Patel et al., 2024, Splitwise, arXiv:2311.18677). Raises OSError or ValueError.
    """
    requests: list[PlannedRequest] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if missing := [name for name in _TRACE_COLUMNS if name not in (rows.fieldnames or ())]:
            raise ValueError(f"{path} is not a trace: it lacks the column {missing[0]}.")
        first: datetime | None = None
        for row in rows:
            try:
                time = datetime.fromisoformat(row["TIMESTAMP"].strip()[:26])  # Azure writes seven digits of a second
                prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            except (ValueError, AttributeError, TypeError):
                raise ValueError(f"{path}, line {rows.line_num}: not a time and two numbers of tokens.") from None
            first = first or time
            seconds = (time - first).total_seconds() * time_scale
            requests.append(PlannedRequest(max(prompt, 1), max(output, 1), seconds))
    if not requests:
        raise ValueError(f"{path} has no requests.")
    return sorted(requests, key=lambda request: request.arrival_seconds or 0.0)


def bounded(
    requests: Iterator[PlannedRequest], max_requests: int | None, max_seconds: float | None
) -> Iterator[PlannedRequest]:
    """Yield at most this number of requests, and none that arrives after the given seconds."""
    for request in itertools.islice(requests, max_requests):
        if max_seconds is not None and (request.arrival_seconds or 0.0) > max_seconds:
            return
        yield request
