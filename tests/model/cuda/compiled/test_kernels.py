"""The GPU's kernels, compiled ahead of time for the GPUs of docs/gpu.md: what each needs, and how it reads memory.

A kernel is compiled as a launch with Llama 3.1 8B's shapes compiles it: the wrappers run, and their launches are
recorded. Changes that must not pass are made on purpose, and each is noticed.
"""

import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

import caravan.model.cuda
from benchmarks.gpu_kernels import TARGETS, Bounds, Figures, compiled, complaints, figures, without_alignment
from benchmarks.gpu_launches import Launch, all_launches, attention_launches, by_name, recorded, sampler_launches
from benchmarks.gpu_page import PAGE, AllFigures, all_figures, page_with

pytestmark = [pytest.mark.proofs, pytest.mark.timeout(900)]

NVIDIA = ("sm_80", "sm_90", "sm_100")

# A thread has at most 255 registers; 168 let three programs of 128 threads share a multiprocessor, and 128 four.
# Shared memory: the A100 has 163 KB for a program, the MI300X 64 KB.
BOUNDS: Mapping[str, Bounds] = MappingProxyType(
    {
        "add_and_normalize": Bounds(registers=64, wide_loads=3),
        "add_biases": Bounds(registers=32),
        "apply_masks": Bounds(registers=96, wide_loads=16),
        "attend_chunk": Bounds(registers=255, shared=48 * 1024, wide_loads=36),
        "attend_chunk, int8 pool": Bounds(registers=208, shared=24 * 1024),  # a row of the pool has 132 bytes
        "collect": Bounds(registers=64),
        "decode_splits": Bounds(registers=128, shared=48 * 1024, wide_loads=32),
        "decode_splits, int8 pool": Bounds(registers=168, shared=24 * 1024),
        "find_logprobs": Bounds(registers=64),
        "find_maxima": Bounds(registers=96, wide_loads=16),
        "find_top": Bounds(registers=168, wide_loads=8),
        "gate": Bounds(registers=64, wide_loads=2),
        "merge_splits": Bounds(registers=64),
        "multiply, 64 rows": Bounds(registers=64, shared=80 * 1024, wide_loads=36),
        "multiply, 512 rows": Bounds(registers=168, shared=100 * 1024, wide_loads=48),
        "multiply, 2048 rows": Bounds(registers=255, shared=160 * 1024, wide_loads=36),
        # Scales and offsets have 2 bytes, one of each for 32 weights.
        "multiply_int4, 64 rows": Bounds(registers=128, shared=64 * 1024, wide_loads=24, narrow_loads=16),
        "multiply_int4, 512 rows": Bounds(registers=168, shared=64 * 1024, wide_loads=24, narrow_loads=8),
        "multiply_int4, 2048 rows": Bounds(registers=232, shared=96 * 1024, wide_loads=18, narrow_loads=8),
        "normalize_heads": Bounds(registers=32),
        "penalize": Bounds(registers=128, wide_loads=16),
        "pick": Bounds(registers=96),
        "record_tokens": Bounds(registers=32),
        "rotate_and_write": Bounds(registers=64),
        "rotate_and_write, int8 pool": Bounds(registers=64),
        "truncate": Bounds(registers=64),
        "weigh": Bounds(registers=64, wide_loads=16),
        "write_heads_kernel": Bounds(registers=64),
        "write_heads_kernel, int8 pool": Bounds(registers=64),
    }
)


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


@pytest.mark.parametrize("kernel", ["multiply", "multiply_int4"])
@pytest.mark.parametrize("target", TARGETS)
def test_products_of_any_number_of_rows_have_one_family_of_matrix_instructions(
    target: str, kernel: str, compiled_kernels: AllFigures
) -> None:
    families = {
        tuple(_family(layout) for layout in compiled_kernels[f"{kernel}, {num_rows} rows"][target].matrix_layouts)
        for num_rows in (64, 512, 2048)
    }
    assert len(families) == 1


def _family(layout: str) -> str:
    """Return the version of a matrix instruction, without warps and tile: mma.sync 2, wgmma 3, or tcgen05."""
    return "tcgen05" if "block" in layout else layout.split(", warps")[0]


@pytest.mark.parametrize("name", ["penalize", "weigh", "collect", "truncate", "pick"])
@pytest.mark.parametrize("target", NVIDIA)
def test_what_decides_a_token_fuses_no_product_with_a_sum(target: str, name: str) -> None:
    code = compiled(launch_of(sampler_launches(), name), TARGETS[target]).asm["ptx"]
    assert "fma." not in code
    assert ("div.rn.f32" in code) == (name in ("penalize", "weigh"))  # correctly rounded
    assert "div.full" not in code


def test_the_page_has_the_figures_of_these_kernels(compiled_kernels: AllFigures) -> None:
    page = PAGE.read_text("utf-8")
    assert page_with(page, compiled_kernels) == page, "write it anew: python -m benchmarks.gpu_page"


def launch_of(launches: list[Launch], name: str) -> Launch:
    """Return the first launch of that name."""
    return next(launch for launch in by_name(launches) if launch.name == name)


ALIGNED = [name for name, bounds in BOUNDS.items() if bounds.wide_loads and name != "add_and_normalize"]  # no stride


@pytest.mark.parametrize("name", ALIGNED)
def test_a_stride_that_is_no_multiple_of_16_is_noticed(name: str) -> None:
    launch = without_alignment(launch_of(all_launches(), name))
    assert any("loads" in complaint for complaint in complaints(figures(launch, TARGETS["sm_90"]), BOUNDS[name]))


def test_registers_that_are_spilled_are_noticed() -> None:
    launch = launch_of(attention_launches(torch.bfloat16), "attend_chunk")
    found = figures(replace(launch, options=launch.options | {"ROWS": 64}), TARGETS["sm_90"])
    assert any("spilled" in complaint for complaint in complaints(found, BOUNDS["attend_chunk"]))


def test_another_matrix_instruction_in_one_of_the_pair_is_noticed() -> None:
    launches = attention_launches(torch.bfloat16)
    chunk, decode = (launch_of(launches, name) for name in ("attend_chunk", "decode_splits"))
    others = replace(chunk, options=chunk.options | {"num_warps": 8})
    found = [figures(launch, TARGETS["sm_90"]).matrix_layouts for launch in (others, decode)]
    assert found[0] != found[1]


@triton.jit
def count_tokens(tokens, counts, COUNT: tl.constexpr):
    tl.atomic_add(counts + tl.load(tokens + tl.arange(0, COUNT)), 1)


@pytest.mark.parametrize("target", TARGETS)
def test_an_atomic_instruction_is_noticed(target: str) -> None:
    tokens = torch.empty(128, dtype=torch.int32)
    (launch,) = recorded(lambda: count_tokens[(1,)](tokens, tokens, COUNT=128))
    found = complaints(figures(launch, TARGETS[target]), Bounds())
    assert found == [f"{figures(launch, TARGETS[target]).num_atomics} atomic instructions"]


def test_loads_of_2_bytes_are_noticed() -> None:
    @triton.jit
    def copy(x, y, stride, COUNT: tl.constexpr):
        places = tl.arange(0, COUNT) * stride
        tl.store(y + places, tl.load(x + places))

    x = torch.empty(4096, dtype=torch.bfloat16)
    (launch,) = recorded(lambda: copy[(1,)](x, x, 3, COUNT=128))
    for target in TARGETS.values():
        assert complaints(figures(launch, target), Bounds()) == ["1 loads of 1 or 2 bytes"]


def test_a_kernel_with_too_much_of_anything_is_named() -> None:
    found = Figures(registers=99, spilled=8, shared=5000, loads={2: 3, 16: 1}, num_atomics=0, matrix_layouts=(), loop=0)
    assert complaints(found, Bounds(registers=98, shared=4999, wide_loads=2, narrow_loads=2)) == [
        "8 bytes of stack: registers are spilled",
        "99 registers of 98",
        "5000 bytes of shared memory of 4999",
        "1 loads of 16 bytes, not 2",
        "3 loads of 1 or 2 bytes",
    ]
    assert complaints(replace(found, spilled=0), Bounds(narrow_loads=3)) == ["5000 bytes of shared memory of 4096"]


def test_the_sampler_launches_the_same_kernels_whatever_its_rows_want() -> None:
    """So a CUDA graph with them serves every step."""
    assert [launch.name for launch in sampler_launches()][:7] == [
        "penalize",
        "add_biases",
        "find_maxima",
        "weigh",
        "collect",
        "truncate",
        "pick",
    ]
