"""Weights packed for a GPU, which needs none and no Triton, against the gguf package. `make proofs` multiplies them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from caravan.model.blocks import BLOCK_SIZES, NVFP4_WITH_FACTOR, NotFinite, StoredRows
from caravan.model.cuda.block_numbers import block_numbers
from caravan.model.cuda.packed_layouts import BLOCK_LAYOUTS, SIGN, WORD_INPUTS
from caravan.model.cuda.packing import PackedWeight, pack_rows
from tests.support.gguf_blocks import dequantized, random_blocks

CPU = torch.device("cpu")


def unpacked(weight: PackedWeight, num_inputs: int) -> Tensor:
    """Return the matrix [out, in] in float32, computed from the description of the layout."""
    layout, words, scales, factors = weight
    numbers = torch.zeros(len(words), words.shape[1] * 32 // layout.bits)
    for lane in range(4):
        for i in range(16 // layout.bits):
            for half in range(2):
                found = words[:, lane::4] >> 16 * half + i * layout.bits & (1 << layout.bits) - 1
                numbers[:, 8 * i + 2 * lane + half :: 128 // layout.bits] = found.float()
    groups = numbers.unflatten(1, (-1, layout.group)) - layout.zero
    if factors is None:
        offsets = None
        if layout.has_offsets:
            scales, offsets = scales.view(torch.float16).float().unflatten(1, (-1, 2)).unbind(-1)
        scales = scales.float()
    else:
        halves = factors.view(torch.float16).unflatten(1, (-1, 2)).float()  # [out, blocks, 2]
        places = torch.arange(WORD_INPUTS // layout.group) * layout.scale_bits
        per_factor = 256 // layout.group

        def level(first_bit: int, half: int, sign: int) -> Tensor:
            whole = (scales.unsqueeze(-1) >> places + first_bit & (1 << layout.scale_bits) - 1).flatten(1) - sign
            return whole.unflatten(1, (-1, per_factor)).mul(halves[..., half : half + 1]).flatten(1)

        offsets = level(16, 1, 0) if layout.has_offsets else None
        scales = level(0, 0, 0 if layout.has_offsets else SIGN)
    wide = groups * scales.unsqueeze(-1)
    return (wide if offsets is None else wide + offsets.unsqueeze(-1)).flatten(1)[:, :num_inputs]


@pytest.mark.parametrize("kind", BLOCK_SIZES)
@pytest.mark.parametrize("num_inputs", [768, 800])
def test_blocks_are_packed_without_loss_in_the_size_that_is_planned(kind: str, num_inputs: int) -> None:
    if num_inputs % BLOCK_SIZES[kind][0]:
        num_inputs = 512
    stored = random_blocks(kind, 20, num_inputs)
    first, second = torch.tensor([19, 0, 7]), torch.arange(20)
    packed = pack_rows([StoredRows(kind, torch.from_numpy(stored), order) for order in (first, second)], CPU)
    assert torch.equal(unpacked(packed, num_inputs), dequantized(kind, stored)[torch.cat((first, second))])
    assert sum(part.nbytes for part in packed.tensors) == BLOCK_LAYOUTS[kind].num_bytes(23, num_inputs)


def test_rows_are_packed_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = random_blocks("Q4_K", 20, 256)
    rows = [StoredRows("Q4_K", torch.from_numpy(stored), torch.arange(20))]
    whole = pack_rows(rows, CPU)
    monkeypatch.setattr("caravan.model.cuda.packing._BYTES_AT_ONCE", 3 * stored.shape[1])
    assert all(map(torch.equal, pack_rows(rows, CPU).tensors, whole.tensors))


@pytest.mark.parametrize("kind", ["MXFP4", "NVFP4"])
def test_all_scales_of_4_bit_floats_are_read(kind: str) -> None:
    """Every byte is a scale, but in MXFP4 those whose largest value is past float32."""
    num_inputs, num_bytes = BLOCK_SIZES[kind]
    blocks = np.random.default_rng(0).integers(0, 256, (64, 512 // num_inputs, num_bytes), dtype=np.uint8)
    num_scales = 1 if kind == "MXFP4" else 4
    scales = np.arange(64 * (512 // num_inputs) * num_scales) % (253 if kind == "MXFP4" else 256)
    blocks[..., :num_scales] = scales.reshape(64, -1, num_scales)
    stored = blocks.reshape(64, -1)
    packed = pack_rows([StoredRows(kind, torch.from_numpy(stored), torch.arange(64))], CPU)
    assert torch.equal(unpacked(packed, 512), dequantized(kind, stored))


NOT_FINITE = np.array([np.inf], np.float16).tobytes()
PLACES = {  # kind -> places of its float16 numbers in a block
    "Q4_0": (0,),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q6_K": (208,),
}


@pytest.mark.parametrize(("kind", "place"), [(kind, place) for kind, places in PLACES.items() for place in places])
def test_a_scale_that_is_not_finite_is_an_error(kind: str, place: int) -> None:
    stored = random_blocks(kind, 9, 256)
    stored[8, place : place + 2] = np.frombuffer(NOT_FINITE, np.uint8)
    with pytest.raises(NotFinite):
        pack_rows([StoredRows(kind, torch.from_numpy(stored), torch.arange(9))], CPU)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [*(("MXFP4", bytes([e])) for e in (253, 255)), (NVFP4_WITH_FACTOR, np.array([np.nan], np.float32).tobytes())],
)
def test_a_scale_of_4_bit_floats_that_is_not_finite_is_an_error(kind: str, bad: bytes) -> None:
    stored = random_blocks(kind, 9, 256)
    stored[8, : len(bad)] = np.frombuffer(bad, np.uint8)
    assert not block_numbers(kind, torch.from_numpy(stored)).are_finite()
