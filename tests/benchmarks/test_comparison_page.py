"""The page of a comparison."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.comparison_figures import PAGE, write_figures
from benchmarks.comparison_page import write_page
from benchmarks.file_comparison_page import FILE_HEADING
from benchmarks.machine import machine
from benchmarks.page_sections import section_body
from benchmarks.variants import Variant
from benchmarks.workloads import WORKLOADS


def variant(name: str, kind: str, dtype: str = "bfloat16") -> Variant:
    return Variant(name, kind, dtype, Path("program"), "model", ())


def run(name: str, rate: float, round_name: str) -> dict[str, Any]:
    latency = {"p50": 0.1, "p90": 0.2, "p99": 0.3}
    figures = {"rate": rate, "first_token": latency, "between_tokens": latency}
    return {
        "variant": name,
        "version": "1",
        "time": "2026-11-25 12:00",
        "first_token_seconds": 1.0,
        "peak_bytes": 2**30,
        "workloads": {workload.name: figures for workload in WORKLOADS},
        "round": round_name,
    }


def test_ratios_are_of_runs_of_one_round(tmp_path: Path) -> None:
    known = [variant("Caravan int8", "caravan", "int8"), variant("slow", "other"), variant("fast", "other")]
    runs = [run("Caravan int8", 300, "1"), run("slow", 50, "1"), run("fast", 100, "1")]
    runs += [run("Caravan int8", 900, "2"), run("slow", 60, "2")]  # fast failed: its rate is that of another hour
    write_page({"runs": runs, "machine": machine(), "absent": ["absent"]}, known, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| Caravan int8 | the best | **3.00** <br>fast |" in page
    assert "absent: not installed." in page
    figure = (tmp_path / "figures" / "benchmark-streams.svg").read_text()
    assert "Caravan int8</text>" in figure
    assert ">600</text>" in figure  # the median


def test_the_section_of_another_command_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Benchmarks\n\nobsolete\n\n## {FILE_HEADING}\n\nwritten before\n")
    known = [variant("Caravan int8", "caravan", "int8")]
    write_page({"runs": [run("Caravan int8", 300, "1")], "machine": machine(), "absent": []}, known, page)
    assert section_body(page.read_text(), FILE_HEADING) == "written before"
    assert "obsolete" not in page.read_text()


def test_the_figures_are_those_of_the_page(tmp_path: Path) -> None:
    copy = tmp_path / PAGE.name
    copy.write_text(PAGE.read_text())
    write_figures(copy)
    for name in ("benchmark-streams.svg", "benchmark-prompts.svg"):
        drawn, kept = (page.parent / "figures" / name for page in (copy, PAGE))
        assert drawn.read_text() == kept.read_text(), "draw them again: python -m benchmarks.comparison_figures"


def test_a_page_without_rates_has_no_figures(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Benchmarks\n")
    with pytest.raises(ValueError, match="no table of tokens a second"):
        write_figures(page)
    page.write_text("\n## Tokens a second\n\n| server | 1 |\n| --- | --- |\n| one | |\n")
    with pytest.raises(ValueError, match="one has no median for 1"):
        write_figures(page)
