"""Report: the results of one run."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from caravan.cli.bench.measurement import Measurement

_PERCENTS = (50, 90, 99)


@dataclass(frozen=True)
class Percentiles:
    """How a quantity is distributed, in seconds."""

    p50: float
    p90: float
    p99: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results of one run. Rates are per second, from the first request to the end of the last response."""

    load: str  # for people
    num_requests: int  # answered completely
    num_errors: int
    errors: dict[str, int]  # by kind
    error_texts: dict[str, str]  # the first message of each kind
    seconds: float
    prompt_tokens: int
    output_tokens: int
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float  # prompts too, those from a prefix cache as well
    goodput: float | None  # requests a second within both bounds; None: no bound was given
    first_token: Percentiles | None
    between_tokens: Percentiles | None  # every gap between two events with tokens
    per_token: Percentiles | None  # mean time between the tokens of a request
    end_to_end: Percentiles | None
    max_delay_seconds: float  # by which the client was late in sending a request
    client_microseconds_per_token: float  # of processor time


def make_report(
    measurements: Sequence[Measurement],
    *,
    load: str,
    max_first_token_seconds: float | None = None,
    max_between_tokens_seconds: float | None = None,
    client_seconds: float = 0.0,
) -> Report:
    """Return the results; latencies are those of requests that succeeded."""
    good = [measurement for measurement in measurements if measurement.error is None]
    bad = [measurement for measurement in measurements if measurement.error is not None]
    start = min((measurement.sent for measurement in measurements), default=0.0)
    seconds = max((measurement.ended for measurement in measurements), default=0.0) - start
    per_second = 1 / seconds if seconds > 0 else 0.0
    prompt_tokens = sum(measurement.prompt_tokens for measurement in good)
    output_tokens = sum(measurement.output_tokens for measurement in good)

    def is_within_bounds(measurement: Measurement) -> bool:
        first, between = measurement.first_token_seconds, measurement.seconds_per_token
        is_fast_first = max_first_token_seconds is None or (first is not None and first <= max_first_token_seconds)
        return is_fast_first and (max_between_tokens_seconds is None or (between or 0.0) <= max_between_tokens_seconds)

    has_bounds = max_first_token_seconds is not None or max_between_tokens_seconds is not None
    return Report(
        load=load,
        num_requests=len(good),
        num_errors=len(bad),
        errors=dict(Counter(str(measurement.error) for measurement in bad)),
        error_texts={str(measurement.error): measurement.error_text for measurement in reversed(bad)},
        seconds=seconds,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        requests_per_second=len(good) * per_second,
        output_tokens_per_second=output_tokens * per_second,
        total_tokens_per_second=(prompt_tokens + output_tokens) * per_second,
        goodput=sum(map(is_within_bounds, good)) * per_second if has_bounds else None,
        first_token=percentiles(measurement.first_token_seconds for measurement in good),
        between_tokens=percentiles(gap for measurement in good for gap in measurement.gaps),
        per_token=percentiles(measurement.seconds_per_token for measurement in good),
        end_to_end=percentiles(measurement.seconds for measurement in good),
        max_delay_seconds=max((measurement.sent - measurement.due for measurement in measurements), default=0.0),
        client_microseconds_per_token=client_seconds * 1e6 / output_tokens if output_tokens else 0.0,
    )


def percentiles(values: Iterable[float | None]) -> Percentiles | None:
    """Return the percentiles, by nearest rank, of the values that are not None; None if there are no such values."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return None
    ranks = [ordered[max(math.ceil(percent * len(ordered) / 100), 1) - 1] for percent in _PERCENTS]
    p50, p90, p99 = ranks
    return Percentiles(p50, p90, p99, mean=sum(ordered) / len(ordered))
