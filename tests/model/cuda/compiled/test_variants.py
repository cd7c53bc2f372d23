"""The GPU's kernels, compiled for other shapes, forms of weights and GPUs.

Changes that must not pass are made on purpose, and each is noticed.
"""

import re
from dataclasses import replace
from itertools import product

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from benchmarks.gpu_kernels import TARGETS, Bounds, Figures, compiled, complaints, figures, without_alignment
from benchmarks.gpu_launches import (
    PACKED,
    PACKED_ROWS,
    Launch,
    all_launches,
    attention_launches,
    by_name,
    packed_launches,
    recorded,
    sampler_launches,
)
from benchmarks.gpu_shapes import LLAMA_8B
from caravan.model.cuda import packed_kernels
from caravan.model.cuda.packed_layouts import BLOCK_LAYOUTS, BYTES, MANY_OUTPUTS
from tests.model.cuda.compiled.bounds import BOUNDS, NVIDIA, SMALL_SHARED
from tests.support.extent import every

pytestmark = [pytest.mark.proofs, pytest.mark.timeout(900)]


@pytest.mark.parametrize("case", every(5, product(NVIDIA, (64, 96, 256), (torch.bfloat16, torch.int8))), ids=str)
def test_attention_with_heads_of_other_sizes_spills_nothing_and_has_one_matrix_instruction(
    case: tuple[str, int, torch.dtype],
) -> None:
    """Heads of 128 are those of all other tests."""
    target, head_dim, pool = case
    launches = attention_launches(pool, shapes=replace(LLAMA_8B, head_dim=head_dim))
    chunk, decode = (figures(launch_of(launches, name), TARGETS[target]) for name in ("attend_chunk", "decode_splits"))
    assert [complaints(one, Bounds(registers=255, shared=76 * 1024)) for one in (chunk, decode)] == [[], []]
    assert len(chunk.matrix_layouts) == 1
    assert chunk.matrix_layouts == decode.matrix_layouts


FORMS = {"int8": BYTES} | {kind: BLOCK_LAYOUTS[kind] for kind in ("Q2_K", "Q3_K", "Q5_K", "Q8_0", "NVFP4")}


@pytest.mark.parametrize("kind", FORMS)
def test_products_of_the_other_forms_of_weights_spill_nothing(kind: str) -> None:
    """The A100's code takes the most registers. Kinds that are not here have the form of one that is."""
    x = torch.empty(2048, 4096, dtype=torch.bfloat16)
    (launch,) = packed_launches(FORMS[kind], x, 4096, "")
    narrow = 1 if kind == "int8" else 0  # a scale for 64 inputs
    assert (
        complaints(figures(launch, TARGETS["sm_80"]), Bounds(registers=255, shared=136 * 1024, narrow_loads=narrow))
        == []
    )


@pytest.mark.parametrize("kind", ["Q6_K", "NVFP4 with a factor"])  # with the most shared memory
@pytest.mark.parametrize("capability", [89, 120])
def test_the_largest_packed_product_has_fewer_stages_on_smaller_gpus(
    kind: str, capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_kernels, "shared_memory_bytes", lambda _: SMALL_SHARED)
    (launch,) = packed_launches(BLOCK_LAYOUTS[kind], torch.empty(2048, 4096, dtype=torch.bfloat16), 4096, "")
    target = GPUTarget("cuda", capability, 32)
    assert complaints(figures(launch, target), Bounds(registers=255, shared=SMALL_SHARED)) == []


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_packed_weights_are_multiplied_in_one_order_by_tiles_of_all_sizes(target: str, name: str) -> None:
    """How many inputs in turn a lane has in its registers decides it; wgmma has 2, or takes them from shared memory."""
    x = torch.empty(2048, 4096, dtype=torch.bfloat16)
    widths = {
        width
        for rows in PACKED_ROWS
        for launch in packed_launches(PACKED[name], x[:rows], MANY_OUTPUTS, "")
        for width in re.findall(r"kWidth = (\d+)", compiled(launch, TARGETS[target]).asm["ttgir"])
    }
    assert widths == {"4" if target == "sm_80" else "2"}


@pytest.mark.parametrize("name", ["penalize", "weigh", "collect", "truncate", "pick"])
@pytest.mark.parametrize("target", NVIDIA)
def test_what_decides_a_token_fuses_no_product_with_a_sum(target: str, name: str) -> None:
    code = compiled(launch_of(sampler_launches(), name), TARGETS[target]).asm["ptx"]
    assert "fma." not in code
    assert ("div.rn.f32" in code) == (name in ("penalize", "weigh"))  # correctly rounded
    assert "div.full" not in code


def launch_of(launches: list[Launch], name: str) -> Launch:
    """Return the first launch of that name."""
    return next(launch for launch in by_name(launches) if launch.name == name)


ALIGNED = [
    name
    for name, bounds in BOUNDS.items()
    if bounds.wide_loads and name != "add_and_normalize"  # it has no stride
    if not name.startswith("multiply_packed") or name == "multiply_packed, Q4_K, 64 rows"  # one kernel
]


@pytest.mark.parametrize("name", every(3, ALIGNED))
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
