"""The commands, with a real engine and a tiny model."""

import re
from pathlib import Path

import msgspec
import pytest

from benchmarks import simulate
from benchmarks.page_sections import find_section
from benchmarks.simulation import http_server
from benchmarks.simulation.cost_file import CostFile, read_cost_file, write_cost_file
from benchmarks.simulation.recorder import record
from benchmarks.simulation.step_cost import StepLoad
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import StartEngine
from tests.benchmarks.simulation.fleets import COST, FREE, limits, poisson_load
from tests.support.tiny_llama import tiny_engine, tiny_llama

pytestmark = pytest.mark.slow


def cost_file(**changes: object) -> CostFile:
    found = CostFile(
        model="tiny",
        weights="float32",
        measured="today",
        machine=dict.fromkeys(("processor", "features", "cores", "memory", "system"), "some"),
        start=StartEngine(model_path="tiny"),
        config=limits(),
        kv_bytes_per_token=1024,
        cost=COST,
        api=FREE,
        num_steps=100,
        median_step_error=0.05,
    )
    return msgspec.structs.replace(found, **changes)


@pytest.fixture(scope="module")
def measured(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The costs of a tiny model."""
    path = tmp_path_factory.mktemp("costs") / "costs.json"
    options = ["--seconds", "1", "--pool", "4MiB", "--max-num-seqs", "8", "--threads", "1", "--no-http"]
    simulate.main(["calibrate", str(tiny_model_path), "--out", str(path), *options])
    return path


def simulated(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> str:
    """Return what a simulation prints."""
    simulate.main(["run", "--cost", str(path), *options])
    return capsys.readouterr().out


def failed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the line with which a command ends."""
    with pytest.raises(SystemExit):
        simulate.main(words)
    return capsys.readouterr().err.splitlines()[-1]


def test_the_recorder_runs_every_request_to_its_end() -> None:
    load = poisson_load(60.0, 0.3, output="2-6")
    arrivals = load.arrivals()
    prompts = load.prompts()
    engine = tiny_engine(tiny_llama(), max_model_len=150)
    journal, steps = record(engine, arrivals, prompts)
    figures = journal.figures()
    assert figures.num_requests + figures.num_rejected == len(arrivals)
    assert figures.num_rejected == sum(arrival.prompt_tokens >= 150 for arrival in arrivals) > 0
    fitting = [arrival for arrival in arrivals if arrival.prompt_tokens < 150]
    assert sum(step.load.prefill_tokens for step in steps) >= sum(arrival.prompt_tokens for arrival in fitting)
    assert all(step.seconds > 0 and step.load != StepLoad() for step in steps)


def test_calibrate_measures_a_model_that_run_can_simulate(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs = read_cost_file(measured)
    assert costs.config.max_num_seqs == 8
    assert costs.config.num_tokens * costs.kv_bytes_per_token <= 4 * 2**20
    assert costs.num_steps > 20
    assert "| requests a second" in simulated(
        capsys, measured, "--rate", "3", "--prompt", "20-60", "--output", "8", "--seconds", "10"
    )


def test_calibrate_measures_the_api_process(
    tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "ALONE_SECONDS", 0.1)
    path = tmp_path / "costs.json"
    options = ["--seconds", "0.5", "--pool", "4MiB", "--max-num-seqs", "8", "--threads", "1"]
    simulate.main(["calibrate", str(tiny_model_path), "--out", str(path), *options])
    api = read_cost_file(path).api
    assert 0 <= api.request_seconds < 5
    assert 1e-6 < api.token_seconds < 0.1


def test_requests_over_http_all_end(measured: Path) -> None:
    load = poisson_load(20.0, 1.0, shared_prefix_tokens=20)
    with http_server.served(read_cost_file(measured)) as server:
        journal = http_server.record_http(server.url, load)
        with pytest.raises(ValueError, match=r"A request failed: HTTP 400"):
            http_server.record_http(server.url, poisson_load(20.0, 0.2, prompt="5000"))
    ended = [(journey.prompt_tokens, journey.num_tokens) for journey in journal.journeys.values()]
    assert ended == [(20 + one.prompt_tokens, one.output_tokens) for one in load.planned]
    assert journal.figures().num_requests == len(load.planned)


def test_check_compares_three_loads_and_writes_them_into_the_page(
    measured: Path,
    tiny_model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Scaling\n\n## Measured error\n\nold\n\n## Next\n\nstays\n")
    monkeypatch.setattr(simulate, "PAGE", page)
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        + "".join(f"2023-11-16 18:00:{second:02}.0000000,900,5\n" for second in range(60))
    )
    words = ["check", str(tiny_model_path), "--cost", str(measured), "--requests", "20", "--calibrate", "0.5", "--page"]
    simulate.main([*words, "--trace", str(trace)])
    section = find_section(page.read_text(), "Measured error")
    assert section.count("in process") == 3
    assert "| trace, cut to 600 + 60, in process" in section
    assert "old" not in page.read_text()
    out = capsys.readouterr().out
    assert out.count("times what it took in the calibration before") == 3
    assert page.read_text().endswith("## Next\n\nstays\n")
    assert section.strip().splitlines()[-1] in out


def test_check_rejects_costs_of_another_model(
    tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cost_file(path := tmp_path / "costs.json", cost_file())
    error = failed(capsys, "check", str(tiny_model_path), "--cost", str(path))
    assert error.endswith(f"has the costs of tiny, not of {tiny_model_path}.")


def test_run_prints_a_line_for_each_pool_and_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cost_file(path := tmp_path / "costs.json", cost_file())
    out = simulated(
        capsys,
        path,
        *("--rate", "4", "--prompt", "50", "--output", "10", "--seconds", "10", "--replicas", "2"),
        *("--pool", "1MiB,2MiB", "--budget", "64,128"),
    )
    assert re.findall(r"^\| 2 +\| +([\d,]+) \| +(\d+) \|", out, re.MULTILINE) == [
        *(("1,024", "64"), ("1,024", "128"), ("2,048", "64"), ("2,048", "128"))
    ]


def test_run_prints_the_smallest_fleet_for_a_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cost_file(path := tmp_path / "costs.json", cost_file())
    load = ("--rate", "8", "--prompt", "100", "--output", "10", "--seconds", "20", "--processes", "1")
    out = simulated(capsys, path, *load, "--target-first-token", "0.5")
    assert re.search(r"^\d+ replicas, each with a pool of 2,048 tokens, 128 tokens in a step, 8 sequences\.", out, re.M)
    out = simulated(capsys, path, *load, "--target-first-token", "0.01", "--max-replicas", "9")
    assert "No fleet of up to 9 replicas has 95 % of the first tokens in time." in out


def test_run_prints_the_errors_of_a_sampled_fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cost_file(path := tmp_path / "costs.json", cost_file())
    load = ("--rate", "40", "--prompt", "100", "--output", "10", "--seconds", "10", "--processes", "1")
    out = simulated(capsys, path, *load, "--replicas", "40", "--group", "2", "--groups", "3")
    assert re.search(r"first token +\| +[\d.,]+ ± [\d.]+ \|", out)
    assert re.search(r"replicas simulated +\| +6 \|", out)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--rate", "2"), "--rate needs --prompt and --output."),
        (("--rate", "2", "--prompt", "9", "--output", "9", "--copies", "2"), "--time-scale and --copies are for"),
        (("--trace", "none.csv", "--prompt", "9"), "--prompt and --output are for --rate."),
        (("--trace", "none.csv"), "No such file or directory: 'none.csv'"),
        (("--rate", "0"), "argument --rate: 0 is not a number above 0."),
        (("--rate", "2", "--replicas", "0"), "argument --replicas: 0 is less than 1."),
        (("--rate", "2", "--groups", "1"), "argument --groups: 1 is less than 2."),
        (("--rate", "2", "--pool", "big"), "argument --pool: invalid sizes value: 'big'"),
        (("--rate", "2", "--prompt", "9", "--output", "9", "--pool", "64KiB"), "does not fit in a KV pool of"),
        (("--rate", "2", "--prompt", "9", "--output", "9", "--pool", "1KiB"), "A block of the KV pool has 8,192 bytes"),
    ],
)
def test_a_wrong_call_ends_with_one_line(
    words: tuple[str, ...], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cost_file(path := tmp_path / "costs.json", cost_file())
    assert error in failed(capsys, "run", "--cost", str(path), *words)


def test_a_file_that_is_no_cost_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path := tmp_path / "costs.json").write_text('{"model": 1}')
    error = failed(capsys, "run", "--cost", str(path), "--rate", "1", "--prompt", "9", "--output", "9")
    assert f"{path} is not a file of `calibrate`: Expected `str`, got `int` - at `$.model`" in error


def test_a_cost_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    costs = cost_file(config=EngineConfig(num_blocks=99, max_model_len=99))
    write_cost_file(path := tmp_path / "costs.json", costs)
    assert read_cost_file(path) == costs
