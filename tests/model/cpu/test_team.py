"""One team of threads for a whole step: it changes no bit, and errors and other threads get through."""

import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from caravan.model.cpu import build
from caravan.model.cpu.linear import PackedLinear, Quantization
from caravan.model.cpu.llama import CpuLlama
from tests.model.oracle import logits_of_every_position
from tests.support.tiny_llama import tiny_llama

KERNELS = Path(build.__file__).parent
PROGRAM = Path(__file__).with_name("team.cpp")
PROMPT = torch.randint(0, 300, (70,), generator=torch.Generator().manual_seed(1)).tolist()
MODES: tuple[Quantization, ...] = ("none", "int8", "int4")


def model_of(kernels: Any, quantization: Quantization = "none") -> CpuLlama:
    model = tiny_llama(make_model=lambda config: CpuLlama(config, kernels, quantization))
    assert isinstance(model, CpuLlama)
    return model


def logits_with_threads(model: CpuLlama, prompt: list[int], num_threads: int) -> Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        return logits_of_every_position(model, prompt)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("quantization", MODES)
@pytest.mark.parametrize("length", [1, 70])
def test_the_number_of_threads_changes_no_bit_of_a_step(kernels: Any, quantization: Quantization, length: int) -> None:
    model, prompt = model_of(kernels, quantization), PROMPT[:length]
    alone = logits_with_threads(model, prompt, 1)
    for num_threads in (2, 3, 7):  # more than there are cores: some come late to every part
        for _ in range(5):
            assert torch.equal(logits_with_threads(model, prompt, num_threads), alone)


def test_an_error_in_a_layer_is_raised_and_the_next_step_runs(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, broken = model_of(kernels), model_of(kernels)
    expected = logits_of_every_position(model, PROMPT)
    down = broken.get_submodule("layers.1.feed_forward.down")
    assert isinstance(down, PackedLinear)
    packed, _, num_outputs = down.passed()
    monkeypatch.setattr(down, "passed", lambda: (packed, ["unknown"], num_outputs))
    for _ in range(3):
        with pytest.raises(ValueError, match="there is no format unknown"):
            logits_with_threads(broken, PROMPT, 2)
        assert torch.equal(logits_with_threads(model, PROMPT, 2), expected)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_an_exception_in_any_thread_of_a_part_is_thrown_once_and_the_team_goes_on(tmp_path: Path) -> None:
    (tmp_path / "ATen").mkdir()
    (tmp_path / "ATen" / "Parallel.h").write_text("")  # the program has what it needs of PyTorch
    command = ["g++", "-O2", "-std=c++20", "-fopenmp", f"-I{tmp_path}", f"-I{KERNELS}", str(PROGRAM)]
    subprocess.run([*command, "-o", str(tmp_path / "team")], check=True)
    done = subprocess.run([tmp_path / "team"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "667 of 667 caught, 0 parts incomplete\n"


def test_each_thread_of_python_has_a_team_of_its_own(kernels: Any) -> None:
    model = model_of(kernels)
    expected = logits_of_every_position(model, PROMPT)
    results: list[Tensor] = []

    def run() -> None:
        results.extend(logits_of_every_position(model, PROMPT) for _ in range(10))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 30
    assert all(torch.equal(result, expected) for result in results)
