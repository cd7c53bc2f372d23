"""The quality of types of files: bounds, tables, and a step that is read by something else than a model."""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import gguf
import pytest
import torch

from benchmarks.llama_cpp import LlamaCppFailed, load_llama_cpp
from benchmarks.machine import machine
from benchmarks.quality import Quality, Reader, measure, measure_readers, reader_of
from benchmarks.quality_types import FORMS, Results, is_held, kinds_in, main, section, verdict, worst
from caravan.model.forward_batch import ForwardBatch
from tests.support.gguf_files import write_tiny_llama
from tests.support.tiny_llama import tiny_llama


def quality(divergence: float, loss: float = 1.0) -> Quality:
    return Quality(10, loss, divergence, 0.97)


def results(*, bfloat16: Quality, native: Quality) -> Results:
    exact = quality(0)
    return {"text": {"float32": exact, "bfloat16": bfloat16, "native": native, "llama.cpp": quality(0.003)}}


GOOD = results(bfloat16=quality(0.0009, 1.1), native=quality(0.0019, 1.0029))


def test_the_bounds_are_of_the_worst_text_and_of_both_directions() -> None:
    assert all(is_held(GOOD, form) for form in ("bfloat16", "native"))
    assert not is_held(results(bfloat16=quality(0.0011), native=quality(0)), "bfloat16")
    assert not is_held(results(bfloat16=quality(0), native=quality(0.0021)), "native")
    assert not is_held(results(bfloat16=quality(0), native=quality(0, 0.996)), "native")
    low = results(bfloat16=quality(0), native=quality(0, 0.996))["text"]
    both = {"first": low, "second": GOOD["text"]}
    assert worst(both, "native") == pytest.approx((0.0019, math.exp(-0.004) - 1))
    assert not is_held(both, "native")


def test_a_verdict_names_each_form_and_llama_cpp_has_no_bound() -> None:
    assert verdict("Q4_0", GOOD) == (
        "Q4_0: bfloat16 0.00090 +10.52 %, held; native 0.00190 +0.29 %, held; llama.cpp 0.00300 +0.00 %"
    )
    assert "native 0.00300 +0.00 %, NOT held" in verdict("Q4_0", results(bfloat16=quality(0), native=quality(0.003)))


def state(all_results: dict[str, Results]) -> dict[str, object]:
    settings = {"tokens": 10, "window": 10, "chunk": 5} | {name: machine()[name] for name in ("processor", "features")}
    types = {
        file_type: {
            "kinds": {"Q5_0": 0.75, "Q8_0": 0.249, "F32": 0.001},
            "texts": {
                text: {form: asdict(one) for form, one in qualities.items()} for text, qualities in one_type.items()
            },
        }
        for file_type, one_type in all_results.items()
    }
    return {"settings": settings, "types": types}


def test_the_section_says_which_blocks_a_file_has_and_which_bounds_fail() -> None:
    bad = results(bfloat16=quality(0.0011), native=quality(0.001))
    page = section(state({"Q6_K": GOOD, "Q4_0": bad}))
    row = "Q5_0 75 %, Q8_0 25 % | 0.00110, +0.00 % | 0.00100, +0.00 % | 0.00300, +0.00 % | NOT held: bfloat16 |"
    assert f"| Q4_0 | {row}" in page
    assert "0.00190, +0.29 % | 0.00300, +0.00 % | held |" in page
    assert "### text, each type" in page
    assert page.index("| Q4_0 |") < page.index("| Q6_K |")
    assert page.count("97.0 %") == 2 * len(FORMS)


def test_a_page_is_written_from_earlier_results_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, stored = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text("# Quality\n\nother\n")
    stored.write_text(json.dumps(state({"Q4_0": GOOD})))
    command = ["quality_types", str(tmp_path), "--llama-cpp", str(tmp_path), "--types", "", "--out", str(page)]
    command += ["--results", str(stored), "--tokens", "10", "--window", "10", "--chunk", "5"]
    monkeypatch.setattr(sys, "argv", command)
    main()
    assert page.read_text().startswith("# Quality\n\nother\n\n## Types of blocks\n")
    monkeypatch.setattr(sys, "argv", [*command, "--chunk", "4"])
    with pytest.raises(SystemExit):
        main()  # results of other settings are not mixed with these


def test_parts_of_the_weights_add_up_over_matrices(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "model.gguf", quantize=gguf.GGMLQuantizationType.Q8_0)
    kinds = kinds_in(tmp_path / "model.gguf")
    assert next(iter(kinds)) == "Q8_0"
    assert sum(kinds.values()) == pytest.approx(1)


def test_what_reads_steps_is_measured_like_a_model() -> None:
    model = tiny_llama()
    token_ids = torch.randint(0, 300, (41,), generator=torch.Generator().manual_seed(2)).tolist()
    reader = reader_of(model, torch.float32, 40)
    positions: list[int] = []

    def read(batch: ForwardBatch) -> torch.Tensor:
        positions.append(int(batch.positions[0]))
        return reader(batch) + 1  # the same distribution

    readers: dict[str, Reader] = {"float32": reader_of(model, torch.float32, 40), "other": read}
    measured = measure_readers(readers, token_ids, [], window=20, chunk=15)
    assert positions == [0, 15, 0, 15]
    assert measured["other"].divergence == pytest.approx(0, abs=1e-6)
    assert measured["float32"] == measure({"one": (model, torch.float32)}, token_ids, [], window=20, chunk=15)["one"]


def test_a_folder_without_llama_cpp_is_an_error_that_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(LlamaCppFailed, match=r"benchmarks/peers\.md"):
        load_llama_cpp(tmp_path)
