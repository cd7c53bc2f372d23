"""Figures from measurements."""

import pytest

from caravan.cli.bench.measurement import Measurement
from caravan.cli.bench.report import make_report, percentiles


def measured(start: float, first: float, gap: float, num_tokens: int = 5) -> Measurement:
    times = [start + first + gap * i for i in range(num_tokens)]
    return Measurement(start, start, times[-1], prompt_tokens=10, output_tokens=num_tokens, token_times=times)


def test_percentiles_are_values_that_were_measured_by_nearest_rank() -> None:
    figures = percentiles([float(value) for value in range(200, 0, -1)])
    assert figures is not None
    assert (figures.p50, figures.p90, figures.p99, figures.mean) == (100, 180, 198, 100.5)


def test_percentiles_of_one_value_are_that_value() -> None:
    figures = percentiles([3.0, None])
    assert figures is not None
    assert (figures.p50, figures.p90, figures.p99) == (3.0, 3.0, 3.0)
    assert percentiles([]) is None


def test_rates_count_from_the_first_request_to_the_last_end() -> None:
    report = make_report([measured(2.0, 1.0, 0.25), measured(4.0, 1.0, 0.25)], load="x")
    assert report.seconds == 4.0
    assert report.requests_per_second == 0.5
    assert report.output_tokens_per_second == 2.5
    assert report.total_tokens_per_second == 7.5


def test_latencies_are_of_each_kind() -> None:
    report = make_report([measured(0.0, 1.0, 0.25)], load="x")
    assert report.first_token is not None
    assert report.between_tokens is not None
    assert report.per_token is not None
    assert report.end_to_end is not None
    assert report.first_token.p50 == 1.0
    assert report.between_tokens.p50 == 0.25
    assert report.per_token.p50 == 0.25
    assert report.end_to_end.p50 == 2.0


def test_time_per_token_counts_tokens_and_not_events() -> None:
    both = Measurement(0.0, 0.0, 3.0, output_tokens=5, token_times=[1.0, 3.0])  # one event of one token, one of four
    assert both.seconds_per_token == 0.5


def test_goodput_counts_requests_within_all_bounds() -> None:
    requests = [measured(0.0, 0.1, 0.01), measured(0.0, 0.5, 0.01), measured(0.0, 0.1, 0.05)]

    def goodput(**bounds: float) -> float | None:
        return make_report(requests, load="x", **bounds).goodput

    seconds = max(request.ended for request in requests)
    assert goodput() is None
    assert goodput(max_first_token_seconds=0.2) == pytest.approx(2 / seconds)
    assert goodput(max_between_tokens_seconds=0.02) == pytest.approx(2 / seconds)
    assert goodput(max_first_token_seconds=0.2, max_between_tokens_seconds=0.02) == pytest.approx(1 / seconds)


def test_errors_are_counted_by_kind_and_left_out_of_the_figures() -> None:
    failed = [Measurement(0.0, 0.0, 9.0, error=kind, error_text="why") for kind in ("timeout", "HTTP 500", "timeout")]
    report = make_report([measured(0.0, 1.0, 0.25), *failed], load="x")
    assert report.errors == {"timeout": 2, "HTTP 500": 1}
    assert (report.num_requests, report.num_errors) == (1, 3)
    assert report.end_to_end is not None
    assert report.end_to_end.p99 == 2.0


def test_a_late_request_counts_its_delay_in_its_latency() -> None:
    late = Measurement(1.0, 1.5, 3.0, output_tokens=2, token_times=[2.0, 3.0])
    assert late.first_token_seconds == 1.0
    assert late.seconds == 2.0
    assert make_report([late], load="x").max_delay_seconds == 0.5
