"""Which requests are made, and when."""

import itertools
from pathlib import Path

import pytest

from caravan.cli.bench.lengths import parse_lengths
from caravan.cli.bench.workload import PlannedRequest, bounded, poisson_requests, steady_requests, trace_requests

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
PROMPT, OUTPUT = parse_lengths("64-256"), parse_lengths("16")


def write_trace(folder: Path, *rows: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(HEADER + "\n".join(rows) + "\n")
    return path


def test_a_trace_gives_times_from_its_first_request_and_lengths(tmp_path: Path) -> None:
    path = write_trace(tmp_path, "2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109")
    first, second = trace_requests(path, 1.0)
    assert first == PlannedRequest(374, 44, 0.0)
    assert second.arrival_seconds == pytest.approx(4.314579, abs=1e-5)
    assert (second.prompt_tokens, second.output_tokens) == (396, 109)


def test_the_time_scale_multiplies_the_times_of_a_trace(tmp_path: Path) -> None:
    path = write_trace(tmp_path, "2023-11-16 18:15:46,1,1", "2023-11-16 18:15:56,1,1")
    assert [request.arrival_seconds for request in trace_requests(path, 0.25)] == [0.0, 2.5]


def test_a_file_without_the_columns_is_not_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("time,tokens\n1,2\n")
    with pytest.raises(ValueError, match="lacks the column TIMESTAMP"):
        trace_requests(path, 1.0)


def test_a_broken_row_is_named_by_its_line(tmp_path: Path) -> None:
    path = write_trace(tmp_path, "2023-11-16 18:15:46,1,1", "yesterday,1,1")
    with pytest.raises(ValueError, match="line 3"):
        trace_requests(path, 1.0)


def test_a_trace_without_requests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no requests"):
        trace_requests(write_trace(tmp_path), 1.0)


def test_poisson_arrivals_come_at_the_rate_and_irregularly() -> None:
    requests = itertools.islice(poisson_requests(PROMPT, OUTPUT, 20.0, seed=1), 4001)
    times = [request.arrival_seconds or 0.0 for request in requests]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[-1] / 4000 == pytest.approx(1 / 20, rel=0.05)
    assert sum(gap > 1 / 20 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.03)  # 1 / e


def test_a_seed_makes_arrivals_and_lengths_repeatable() -> None:
    def some(seed: int) -> list[PlannedRequest]:
        return list(itertools.islice(poisson_requests(PROMPT, OUTPUT, 5.0, seed), 20))

    assert some(3) == some(3)
    assert some(3) != some(4)


def test_a_load_ends_at_a_number_of_requests_or_a_time() -> None:
    assert len(list(bounded(steady_requests(PROMPT, OUTPUT, 0), 7, None))) == 7
    arrivals = [PlannedRequest(1, 1, float(second)) for second in range(10)]
    assert len(list(bounded(iter(arrivals), None, 3.5))) == 4
