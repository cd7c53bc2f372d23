"""The GPU's kernels, compiled ahead of time for the GPUs of docs/gpu.md: what each needs, and how it reads memory.

A kernel is compiled as a launch with Llama 3.1 8B's shapes compiles it: the wrappers run, and their launches are
recorded.
"""

import inspect
import pkgutil
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from triton.runtime.jit import JITFunction

import caravan.model.cuda
from benchmarks.gpu_kernels import TARGETS, complaints
from benchmarks.gpu_launches import PACKED, PACKED_ROWS, PRODUCT_ROWS, all_launches
from benchmarks.gpu_page import PAGE, AllFigures, all_figures, page_with
from caravan.model.cuda.shared_memory import MOST, shared_memory_bytes
from tests.model.cuda.compiled.bounds import BOUNDS, NVIDIA, SMALL_SHARED

pytestmark = [pytest.mark.proofs, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def compiled_kernels() -> AllFigures:
    return all_figures()


def test_every_kernel_is_compiled_and_has_bounds() -> None:
    modules = [
        import_module(f"caravan.model.cuda.{found.name}") for found in pkgutil.iter_modules(caravan.model.cuda.__path__)
    ]
    kernels = {
        name: value for module in modules for name, value in vars(module).items() if isinstance(value, JITFunction)
    }
    sources = {name: inspect.getsource(kernel.fn) for name, kernel in kernels.items()}
    called = {name for name in kernels for other, source in sources.items() if other != name and f"{name}(" in source}
    launched = {launch.kernel.__name__ for launch in all_launches()}
    assert launched == kernels.keys() - called
    assert {launch.name for launch in all_launches()} == BOUNDS.keys()


@pytest.mark.parametrize("name", BOUNDS)
def test_a_kernel_spills_nothing_and_stays_within_its_bounds(name: str, compiled_kernels: AllFigures) -> None:
    assert {target: complaints(compiled_kernels[name][target], BOUNDS[name]) for target in NVIDIA} == {
        target: [] for target in NVIDIA
    }


def test_the_kernels_compile_for_the_mi300x_without_atomics(compiled_kernels: AllFigures) -> None:
    assert {name: found["gfx942"].num_atomics for name, found in compiled_kernels.items()} == dict.fromkeys(BOUNDS, 0)


@pytest.mark.parametrize("suffix", ["", ", int8 pool"])
@pytest.mark.parametrize("target", NVIDIA)
def test_rows_that_decode_and_chunks_have_one_matrix_instruction(
    target: str, suffix: str, compiled_kernels: AllFigures
) -> None:
    chunk, decode = (compiled_kernels[f"{name}{suffix}"][target] for name in ("attend_chunk", "decode_splits"))
    assert len(chunk.matrix_layouts) == 1
    assert chunk.matrix_layouts == decode.matrix_layouts


@pytest.mark.parametrize("kernel", ["multiply", *(f"multiply_packed, {name}" for name in PACKED)])
@pytest.mark.parametrize("target", TARGETS)
def test_products_of_any_number_of_rows_have_one_family_of_matrix_instructions(
    target: str, kernel: str, compiled_kernels: AllFigures
) -> None:
    families = {
        _family(layout)
        for num_rows in (PRODUCT_ROWS if kernel == "multiply" else PACKED_ROWS)
        for layout in compiled_kernels[f"{kernel}, {num_rows} rows"][target].matrix_layouts
    }
    assert len(families) == 1


def _family(layout: str) -> str:
    """Return the version of a matrix instruction, without warps and tile: mma.sync 2, wgmma 3, or tcgen05."""
    return "tcgen05" if "block" in layout else layout.split(", warps")[0]


def test_all_kernels_but_the_largest_packed_product_fit_into_the_shared_memory_of_smaller_gpus(
    compiled_kernels: AllFigures,
) -> None:
    """They have the matrix instructions of the A100, and so its shared memory."""
    too_large = {name for name, found in compiled_kernels.items() if found["sm_80"].shared > SMALL_SHARED}
    assert too_large == {f"multiply_packed, {name}, 2048 rows" for name in PACKED}


def test_the_shared_memory_of_a_gpu_is_what_cuda_says(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = {"shared_memory_per_block": 48 * 1024, "shared_memory_per_block_optin": SMALL_SHARED}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(**memory))
    assert shared_memory_bytes(torch.device("cuda", 0)) == SMALL_SHARED
    assert shared_memory_bytes(torch.device("cpu")) == MOST


def test_the_page_has_the_figures_of_these_kernels(compiled_kernels: AllFigures) -> None:
    page = PAGE.read_text("utf-8")
    assert page_with(page, compiled_kernels) == page, "write it anew: python -m benchmarks.gpu_page"
