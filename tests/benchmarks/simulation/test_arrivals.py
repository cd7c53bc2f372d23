"""Arrivals: lengths, copies of a trace, and parts of a load."""

import itertools
from pathlib import Path

import pytest

from benchmarks.simulation.arrivals import Load, burst, cut, poisson, thinned, trace
from caravan.cli.bench.lengths import parse_lengths
from tests.benchmarks.simulation.fleets import poisson_load

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:00:00.0000000,100,10
2023-11-16 18:00:01.0000000,200,20
2023-11-16 18:00:04.0000000,300,30
"""


@pytest.fixture
def trace_path(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return path


def test_a_trace_keeps_times_and_lengths(trace_path: Path) -> None:
    found = [(one.arrival_seconds, one.prompt_tokens, one.output_tokens) for one in trace(trace_path)]
    assert found == [(0.0, 100, 10), (1.0, 200, 20), (4.0, 300, 30)]


def test_a_trace_ends_before_the_given_seconds_after_its_times_are_scaled(trace_path: Path) -> None:
    assert [one.arrival_seconds for one in trace(trace_path, time_scale=2.0, seconds=8.0)] == [0.0, 2.0]


def test_each_copy_of_a_trace_has_all_its_requests_within_its_duration(trace_path: Path) -> None:
    found = trace(trace_path, copies=5, seed=3)
    assert sorted(one.prompt_tokens for one in found) == [100] * 5 + [200] * 5 + [300] * 5
    times = [one.arrival_seconds or 0.0 for one in found]
    assert times == sorted(times)
    assert times[-1] <= 4.0
    assert len({*times}) > 10  # they start at different times


def test_poisson_arrivals_have_their_rate() -> None:
    found = poisson(parse_lengths("10"), parse_lengths("5"), 20.0, 500.0, seed=2)
    assert len(found) == pytest.approx(10_000, rel=0.03)
    assert all((one.arrival_seconds or 0.0) < 500.0 for one in found)


def test_a_burst_arrives_at_once() -> None:
    assert {one.arrival_seconds for one in burst(parse_lengths("10-20"), parse_lengths("5"), 7, seed=0)} == {0.0}


def test_longer_lengths_are_cut_and_shorter_ones_stay(trace_path: Path) -> None:
    found = [(one.prompt_tokens, one.output_tokens) for one in cut(trace(trace_path), 200, 15)]
    assert found == [(100, 10), (200, 15), (200, 15)]
    assert cut(trace(trace_path), None, None) == trace(trace_path)


def test_parts_of_a_load_are_disjoint_and_together_are_all_of_it() -> None:
    arrivals = poisson_load(50.0, 100.0).arrivals()
    parts = thinned(arrivals, 4.0, 4, seed=0)
    assert sorted(itertools.chain(*parts), key=lambda arrival: arrival.request_id) == arrivals
    assert [len(part) for part in parts] == pytest.approx([len(arrivals) / 4] * 4, rel=0.1)


def test_a_part_has_its_share_of_the_arrivals() -> None:
    arrivals = poisson_load(50.0, 100.0).arrivals()
    (part,) = thinned(arrivals, 12.5, 1, seed=0)
    assert len(part) == pytest.approx(len(arrivals) / 12.5, rel=0.15)


def test_prompts_begin_with_one_of_the_prefixes() -> None:
    load = Load(
        planned=poisson(parse_lengths("10"), parse_lengths("5"), 1.0, 60.0, 0), shared_prefix_tokens=32, num_prefixes=3
    )
    prompts = load.prompts()
    requests = [prompts.request(arrival) for arrival in load.arrivals()]
    assert len({tuple(request.prompt_token_ids[:32]) for request in requests}) == 3
    assert len({tuple(request.prompt_token_ids[32:]) for request in requests}) == len(requests)
    assert {len(request.prompt_token_ids) for request in requests} == {42}
