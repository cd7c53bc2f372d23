"""`caravan bench` against a server whose behaviour is known."""

import asyncio
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from caravan.cli.bench import BenchFailed
from caravan.cli.bench.command import bench_command
from caravan.cli.bench.lengths import parse_lengths
from caravan.cli.bench.report import Report
from caravan.cli.bench.run import BenchOptions, Run, run_bench
from tests.cli.bench.fake_server import TEMPLATE_TOKENS, FakeServer, fake_server

pytestmark = pytest.mark.slow

DEFAULTS = BenchOptions(
    url="",
    model=None,
    api_key=None,
    is_chat=False,
    is_stream=True,
    concurrency=(2,),
    rate=None,
    trace=None,
    time_scale=1.0,
    prompt=parse_lengths("20"),
    output=parse_lengths("8"),
    shared_prefix_tokens=0,
    max_requests=6,
    max_seconds=None,
    timeout_seconds=10.0,
    max_first_token_seconds=None,
    max_between_tokens_seconds=None,
    temperature=0.0,
    seed=0,
)


def measure(server: FakeServer, **changes: Any) -> tuple[list[Report], tuple[str, ...]]:
    """Return a report for each load and the notes about the server."""
    options = replace(DEFAULTS, url=server.url, **changes)
    runs: list[Run] = []
    notes: list[tuple[str, ...]] = []
    asyncio.run(run_bench(options, runs, lambda endpoint: notes.append(endpoint.notes), lambda _: None))
    return [run.report(options) for run in runs], notes[0]


def command(url: str, tmp_path: Path | None = None, **changes: Any) -> tuple[bool, str]:
    """Return whether all was answered, and what was printed."""
    output = io.StringIO()
    paths = {
        "json_path": None if tmp_path is None else tmp_path / "figures.json",
        "plot_path": None if tmp_path is None else tmp_path / "figure.svg",
    }
    options = replace(DEFAULTS, url=url, **changes)
    is_good = bench_command(options, console=Console(file=output, width=160), **paths)
    return is_good, output.getvalue()


def test_latencies_are_those_of_the_server() -> None:
    with fake_server(first_token_seconds=0.1, gap_seconds=0.02) as server:
        ((report,), notes) = measure(server)
    assert notes == ()
    assert report.num_requests == 6
    assert report.first_token is not None
    assert report.between_tokens is not None
    assert report.end_to_end is not None
    assert 0.1 <= report.first_token.p50 < 0.2
    assert 0.02 <= report.between_tokens.mean < 0.05
    assert report.end_to_end.p50 >= 0.1 + 7 * 0.02


def test_tokens_are_counted_by_usage_where_events_hold_several() -> None:
    with fake_server(tokens_per_event=4) as server:
        ((report,), _) = measure(server)
    assert report.output_tokens == 6 * 8
    assert report.prompt_tokens == 6 * 20


def test_a_closed_loop_has_so_many_requests_at_a_time() -> None:
    with fake_server(first_token_seconds=0.1) as server:
        (reports, _) = measure(server, concurrency=(1, 3), max_requests=3)
    assert reports[0].seconds >= 0.3
    assert reports[1].seconds < 0.3
    assert [report.load for report in reports] == ["1 at a time", "3 at a time"]


def test_the_time_bounds_a_closed_loop_and_running_requests_end() -> None:
    with fake_server(first_token_seconds=0.1) as server:
        ((report,), _) = measure(server, concurrency=(1,), max_requests=None, max_seconds=0.25)
    assert report.num_requests in (2, 3)
    assert report.num_errors == 0


def test_an_open_loop_does_not_wait_for_answers() -> None:
    with fake_server(first_token_seconds=0.5) as server:
        ((report,), _) = measure(server, rate=100.0, max_requests=20)
    assert report.num_requests == 20
    assert report.seconds < 2.0


def test_the_times_of_a_trace_are_kept(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = ["2023-11-16 18:00:00.0,30,9", "2023-11-16 18:00:02.0,40,9", "2023-11-16 18:00:03.0,50,9"]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    with fake_server() as server:
        measure(server, trace=trace, time_scale=0.1, max_requests=None)
        arrived = [at for body, at in zip(server.bodies, server.times, strict=True) if body["max_tokens"] == 9]
        assert [len(body["prompt"]) for body in server.measured(9)] == [30, 40, 50]
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrived)]
    assert gaps == pytest.approx([0.2, 0.1], abs=0.05)


def test_prompts_share_their_prefix_and_nothing_else() -> None:
    with fake_server() as server:
        measure(server, shared_prefix_tokens=50)
        prompts = [body["prompt"] for body in server.measured(8)]
    assert {len(prompt) for prompt in prompts} == {70}
    assert len({tuple(prompt[:50]) for prompt in prompts}) == 1
    assert len({tuple(prompt[50:54]) for prompt in prompts}) == len(prompts)


def test_another_load_and_another_seed_have_other_prompts() -> None:
    with fake_server() as server:
        measure(server, shared_prefix_tokens=50, concurrency=(1, 2))
        measure(server, shared_prefix_tokens=50, seed=1)
        prefixes = {tuple(body["prompt"][:50]) for body in server.measured(8)}
    assert len(prefixes) == 3


def test_a_field_that_the_server_refuses_is_left_out_and_named() -> None:
    with fake_server(refused_fields=frozenset({"ignore_eos"})) as server:
        ((report,), notes) = measure(server)
        assert all("ignore_eos" not in body and "stream_options" in body for body in server.measured(8))
    assert report.num_errors == 0
    assert "ignore_eos" in notes[0]


def test_without_usage_tokens_are_counted_by_events_and_that_is_said() -> None:
    with fake_server(refused_fields=frozenset({"stream_options", "ignore_eos"})) as server:
        ((report,), notes) = measure(server)
    assert report.output_tokens == 6 * 8
    assert any("counted by events" in note for note in notes)


def test_a_server_without_token_ids_gets_words_of_the_same_number() -> None:
    with fake_server(takes_token_ids=False) as server:
        ((report,), notes) = measure(server)
        assert {len(body["prompt"].split()) for body in server.measured(8)} == {20}
    assert report.prompt_tokens == 6 * 20
    assert "words" in notes[0]


def test_a_chat_prompt_is_as_long_as_asked_with_its_template() -> None:
    with fake_server() as server:
        ((report,), _) = measure(server, is_chat=True)
        assert len(server.measured(8)[0]["messages"][0]["content"].split()) == 20 - TEMPLATE_TOKENS
    assert report.prompt_tokens == 6 * 20
    assert report.output_tokens == 6 * 8


def test_the_opening_event_of_a_chat_is_not_its_first_token() -> None:
    with fake_server(gap_seconds=0.05) as server:
        ((report,), _) = measure(server, is_chat=True, concurrency=(1,), max_requests=1)
    assert report.between_tokens is not None
    assert report.between_tokens.p50 >= 0.05


def test_answers_need_not_be_streamed() -> None:
    with fake_server(first_token_seconds=0.05) as server:
        ((report,), _) = measure(server, is_stream=False)
        assert all("stream" not in body for body in server.bodies)
    assert report.output_tokens == 6 * 8
    assert report.first_token is None
    assert report.end_to_end is not None
    assert report.end_to_end.p50 >= 0.05


def test_errors_are_counted_by_kind() -> None:
    with fake_server(faults=["500", "cut", "event", "endless", "500"]) as server:
        ((report,), _) = measure(server)
    assert report.errors == {
        "HTTP 500": 2,
        "connection closed by the server": 1,
        "error in the stream": 1,
        "stream cut off": 1,
    }
    assert report.error_texts["HTTP 500"] == "It broke."
    assert report.num_requests == 1


def test_a_request_that_takes_too_long_is_a_timeout() -> None:
    with fake_server(gap_seconds=0.2) as server:
        ((report,), _) = measure(server, timeout_seconds=0.7, max_requests=2)
    assert report.errors == {"timeout": 2}


def test_the_command_prints_tables_and_writes_its_files(tmp_path: Path) -> None:
    with fake_server() as server:
        is_good, text = command(server.url, tmp_path, concurrency=(1, 2))
    assert is_good
    assert "output tokens/s" in text
    assert "2 at a time" in text
    document = json.loads((tmp_path / "figures.json").read_text())
    assert [run["num_requests"] for run in document["runs"]] == [6, 6]
    assert len(document["runs"][0]["requests"]) == 6
    assert "api_key" not in document["options"]
    assert (tmp_path / "figure.svg").read_text().rstrip().endswith("</svg>")


def test_failed_requests_are_a_failure_of_the_command_and_printed() -> None:
    with fake_server(faults=["500"]) as server:
        is_good, text = command(server.url)
    assert not is_good
    assert "1 failed, HTTP 500: It broke." in text


def test_a_server_that_is_not_there_is_one_clear_line() -> None:
    with pytest.raises(BenchFailed, match="Cannot connect to the server: connection refused"):
        command("http://127.0.0.1:9")


def test_the_command_line_ends_with_one_line_and_status_1() -> None:
    words = [sys.executable, "-m", "caravan", "bench", "http://127.0.0.1:9"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "Cannot connect to the server: connection refused. Check the address.\n"


def test_the_command_line_measures() -> None:
    with fake_server() as server:
        words = [sys.executable, "-m", "caravan", "bench", server.url, "--concurrency", "2", "--requests", "4"]
        done = subprocess.run([*words, "--output", "8"], capture_output=True, text=True, check=False)
        assert len(server.measured(8)) == 4
    assert done.returncode == 0, done.stderr
    assert "2 at a time" in done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--rate 2 --concurrency 4", "--rate and --concurrency cannot be combined. Leave one out."),
        ("--trace t.csv --rate 2", "--trace and --rate cannot be combined. Leave one out."),
        ("--trace t.csv --prompt 9", "--trace and --prompt cannot be combined. Leave one out."),
        ("--time-scale 2", "--time-scale needs --trace. Add a trace, or leave it out."),
        ("--no-stream --max-first-token 9", "--no-stream and --max-first-token cannot be combined. Leave one out."),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(options: str, says: str) -> None:
    words = [sys.executable, "-m", "caravan", "bench", "http://127.0.0.1:9", *options.split()]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, says + "\n")


def test_a_wrong_model_is_said_by_the_server() -> None:
    with fake_server() as server, pytest.raises(BenchFailed, match="HTTP 404: There is no model nobody"):
        command(server.url, model="nobody")


def test_a_server_that_refuses_every_form_is_quoted() -> None:
    with (
        fake_server(refused_fields=frozenset({"max_tokens"})) as server,
        pytest.raises(BenchFailed, match="max_tokens"),
    ):
        command(server.url)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://"])
def test_what_is_not_a_url_is_refused(url: str) -> None:
    with pytest.raises(BenchFailed, match="not the address of a server"):
        command(url)


def test_a_plot_without_matplotlib_is_refused_before_measuring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with fake_server() as server:
        with pytest.raises(BenchFailed, match=r"pip install 'caravan-llm\[bench\]'"):
            command(server.url, tmp_path)
        assert not server.bodies


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Tests that a shell runs in the background would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_prints_what_was_measured_so_far() -> None:
    with fake_server(first_token_seconds=0.1) as server:

        def interrupt() -> None:
            while len(server.measured(8)) < 5:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        _, text = command(server.url, max_requests=1000)
    assert "Interrupted" in text
    assert "2 at a time" in text
