"""Blocks of GGUF files, widened and packed by the kernels, against the gguf package."""

from typing import Any

import gguf
import numpy as np
import pytest
import torch

from benchmarks.shapes import float_places
from caravan.model.blocks import BLOCK_SIZES, NVFP4_WITH_FACTOR, NotFinite, StoredRows
from caravan.model.cpu.arena import Arena
from caravan.model.cpu.packing import BLOCK_FORMATS, pack_blocks
from tests.support.gguf_blocks import dequantized, random_blocks


@pytest.fixture(params=BLOCK_SIZES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_sizes_are_those_of_the_gguf_package(kind: str) -> None:
    if kind == NVFP4_WITH_FACTOR:
        num_inputs, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.NVFP4]
        assert BLOCK_SIZES[kind] == (num_inputs, 4 + num_bytes)
        return
    assert BLOCK_SIZES[kind] == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]


def test_rows_are_widened_bit_for_bit(kernels: Any, kind: str) -> None:
    stored = random_blocks(kind, 40, 768)
    expected = dequantized(kind, stored)
    assert expected.std() > 0
    wanted = torch.tensor([39, 0, 7, 7])
    assert torch.equal(kernels.widen_rows(torch.from_numpy(stored), wanted, kind), expected[wanted])


@pytest.mark.parametrize("kind", ["MXFP4", "NVFP4"])
def test_all_scales_of_4_bit_floats_are_widened_bit_for_bit(kernels: Any, kind: str) -> None:
    """Every byte is a scale, but in MXFP4 those whose largest value is past float32."""
    num_inputs, num_bytes = BLOCK_SIZES[kind]
    blocks = np.random.default_rng(0).integers(0, 256, (64, 512 // num_inputs, num_bytes), dtype=np.uint8)
    num_scales = 1 if kind == "MXFP4" else 4
    scales = np.arange(64 * (512 // num_inputs) * num_scales) % (253 if kind == "MXFP4" else 256)
    blocks[..., :num_scales] = scales.reshape(64, -1, num_scales)
    stored = blocks.reshape(64, -1)
    expected = dequantized(kind, stored)
    assert expected.isfinite().all()
    assert kernels.are_finite(torch.from_numpy(stored), kind)
    assert torch.equal(kernels.widen_rows(torch.from_numpy(stored), torch.arange(64), kind), expected)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [("MXFP4", bytes([e])) for e in (253, 254, 255)]
    + [(NVFP4_WITH_FACTOR, np.array([x], np.float32).tobytes()) for x in (np.inf, -np.inf, np.nan)],
)
def test_a_scale_of_4_bit_floats_that_is_not_finite_is_an_error(kernels: Any, kind: str, bad: bytes) -> None:
    stored = random_blocks(kind, 33, 256)
    stored[32, : len(bad)] = np.frombuffer(bad, np.uint8)
    assert not kernels.are_finite(torch.from_numpy(stored), kind)
    with pytest.raises(NotFinite):
        pack_blocks([StoredRows(kind, torch.from_numpy(stored), torch.arange(33))], 256, kernels, Arena())


def test_a_factor_may_be_any_number(kernels: Any) -> None:
    """Also one that float16 has not, and a different one in each row."""
    stored = random_blocks(NVFP4_WITH_FACTOR, 33, 256)
    blocks = stored.reshape(33, 4, 40)
    factors = (np.random.default_rng(1).uniform(-1, 1, 33) * 10.0 ** np.arange(-16, 17)).astype(np.float32)
    blocks[..., :4] = factors.view(np.uint8).reshape(33, 1, 4)
    matrix = dequantized(NVFP4_WITH_FACTOR, stored)
    rows = StoredRows(NVFP4_WITH_FACTOR, torch.from_numpy(stored), torch.arange(33))
    assert torch.equal(kernels.widen_rows(rows.stored, rows.order, NVFP4_WITH_FACTOR), matrix)
    packed = pack_blocks([rows], 256, kernels, Arena())
    out = kernels.linear(torch.eye(256).bfloat16(), [packed], ["NVFP4"], [33], "", None, 0.0, None, None, True)
    largest = matrix.abs().amax(1, keepdim=True)
    torch.testing.assert_close(out.T / largest, matrix / largest, atol=1e-6, rtol=1e-4)


def test_the_order_of_the_rows_and_several_sources_are_kept(kernels: Any, kind: str) -> None:
    stored = [torch.from_numpy(random_blocks(kind, rows, 256, seed=rows)) for rows in (40, 50)]
    orders = [torch.randperm(len(some), generator=torch.Generator().manual_seed(1)) for some in stored]
    rows = [StoredRows(kind, some, order) for some, order in zip(stored, orders, strict=True)]
    sorted_rows = torch.cat([some[order] for some, order in zip(stored, orders, strict=True)])
    packed = pack_blocks(rows, 256, kernels, Arena())
    assert torch.equal(packed, pack_blocks([StoredRows(kind, sorted_rows, torch.arange(90))], 256, kernels, Arena()))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_scale_that_is_not_finite_is_an_error(kernels: Any, kind: str, bad: float) -> None:
    for place in float_places(kind):
        stored = random_blocks(kind, 33, 256)
        assert kernels.are_finite(torch.from_numpy(stored), kind)
        stored[32, place : place + 2] = np.array([bad], dtype=np.float16).view(np.uint8)
        assert not kernels.are_finite(torch.from_numpy(stored), kind)
        with pytest.raises(NotFinite):
            pack_blocks([StoredRows(kind, torch.from_numpy(stored), torch.arange(33))], 256, kernels, Arena())


@pytest.mark.parametrize("kind", BLOCK_FORMATS)
def test_every_value_of_a_block_has_its_place(kernels: Any, kind: str) -> None:
    """A product with one input, for each of them, is the column of the matrix, but for what 8 bits round."""
    stored = random_blocks(kind, 33, 256)
    matrix = dequantized(kind, stored)
    packed = pack_blocks([StoredRows(kind, torch.from_numpy(stored), torch.arange(33))], 256, kernels, Arena())
    columns = kernels.linear(
        torch.eye(256).bfloat16(), [packed], [BLOCK_FORMATS[kind].value], [33], "", None, 0.0, None, None, True
    )
    torch.testing.assert_close(columns.T, matrix, atol=1e-6 * float(matrix.abs().max()) * 32, rtol=1e-4)


def test_rows_outside_the_matrix_are_an_error(kernels: Any) -> None:
    stored = torch.from_numpy(random_blocks("Q8_0", 40, 64))
    for row in (-1, 40, 2**40):
        with pytest.raises(IndexError, match=f"row {row} of 40"):
            kernels.widen_rows(stored, torch.tensor([0, row]), "Q8_0")


def test_wanted_rows_need_not_be_contiguous(kernels: Any, kind: str) -> None:
    stored, wanted = torch.from_numpy(random_blocks(kind, 40, 256)), torch.arange(40).view(20, 2)[:, 1]
    expected = kernels.widen_rows(stored, torch.arange(1, 40, 2), kind)
    assert torch.equal(kernels.widen_rows(stored, wanted, kind), expected)


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q8_0"])
def test_a_scale_may_be_the_largest_number_of_float16(kernels: Any, kind: str) -> None:
    """The least weight, -128 times such a scale in Q8_0, is no number of float16."""
    stored = random_blocks(kind, 32, 32)
    stored[:, :2] = np.array([65504], np.float16).view(np.uint8)
    matrix = dequantized(kind, stored)
    rows = StoredRows(kind, torch.from_numpy(stored), torch.arange(32))
    assert torch.equal(kernels.widen_rows(rows.stored, rows.order, kind), matrix)
    packed = pack_blocks([rows], 32, kernels, Arena())
    out = kernels.linear(torch.eye(32).bfloat16(), [packed], [kind], [32], "", None, 0.0, None, None, True)
    torch.testing.assert_close(out.T, matrix, atol=65504 * 1e-3, rtol=1e-4)


def test_a_kind_that_is_unknown_is_an_error(kernels: Any) -> None:
    stored = torch.zeros(1, 144, dtype=torch.uint8)
    with pytest.raises(ValueError, match="no blocks of the kind Q9_K"):
        kernels.widen_rows(stored, torch.zeros(1, dtype=torch.int64), "Q9_K")
    with pytest.raises(ValueError, match="no blocks of the kind Q9_K"):
        kernels.are_finite(stored, "Q9_K")
    with pytest.raises(ValueError, match="no blocks of the kind Q9_K"):
        kernels.pack_blocks([stored], [torch.zeros(1, dtype=torch.int64)], "Q9_K", torch.empty(0, dtype=torch.uint8))
