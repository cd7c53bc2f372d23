"""Packing: weights of few bits as the kernels for GPUs read them. It runs on the device that the weights are for."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caravan.model.blocks import NotFinite, StoredRows
from caravan.model.cuda.block_numbers import BlockNumbers, block_numbers
from caravan.model.cuda.packed_layouts import BLOCK_LAYOUTS, BYTES, GRIDS, WORD_INPUTS, PackedLayout, padded_inputs
from caravan.model.quantization import ByteWeight, GroupedWeight

_BYTES_AT_ONCE = 2**24  # of the file, packed at a time: on the way they take many times as much


class PackedWeight(NamedTuple):
    """A weight [out, in] on a device, its inputs padded to whole steps."""

    layout: PackedLayout
    numbers: Tensor  # [out, words] int32
    scales: Tensor  # [out, groups]; int32 with offsets, and with factors, where 64 inputs have a word
    factors: Tensor | None  # [out, ceil(in / 256)] int32: two numbers in float16, that of scales in the low half

    @property
    def num_outputs(self) -> int:
        """The number of rows."""
        return self.numbers.shape[0]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that it has."""
        return [part for part in self[1:] if isinstance(part, Tensor)]


def pack_rows(rows: Sequence[StoredRows], device: torch.device) -> PackedWeight:
    """Return rows in blocks of one kind, one after the other, with the values of the file. Raises NotFinite."""
    kind, num_bytes = rows[0].kind, rows[0].stored.shape[1]
    pieces = []
    for part in rows:
        for order in torch.split(part.order, max(1, _BYTES_AT_ONCE // num_bytes)):
            blocks = block_numbers(kind, part.stored[order].to(device))
            if not blocks.are_finite():
                raise NotFinite
            pieces.append(_packed(BLOCK_LAYOUTS[kind], blocks))
    _, *columns = zip(*pieces, strict=True)
    return PackedWeight(BLOCK_LAYOUTS[kind], *(_joined(parts) for parts in columns))  # type: ignore[arg-type]


def pack_grid(weight: GroupedWeight, device: torch.device) -> PackedWeight:
    """Return a weight on a grid, unchanged."""
    parts = (weight.values, weight.scales, weight.offsets)
    return _packed(GRIDS[weight.bits], BlockNumbers(*(part.to(device).unsqueeze(1) for part in parts)))


def pack_bytes(weight: ByteWeight, device: torch.device) -> PackedWeight:
    """Return a weight in signed bytes, unchanged."""
    values = weight.values.to(device).view(torch.uint8) ^ 128
    return _packed(BYTES, BlockNumbers(values.unsqueeze(1), weight.scales.to(device).unsqueeze(1)))


def _packed(layout: PackedLayout, blocks: BlockNumbers) -> PackedWeight:
    numbers = blocks.numbers.flatten(1)
    width = padded_inputs(numbers.shape[1])
    numbers = _words(layout.bits, _padded(numbers, width))
    scales, offsets = (
        None if part is None else _padded(part.flatten(1), width // layout.group).contiguous()
        for part in (blocks.scales, blocks.offsets)
    )
    assert scales is not None
    if blocks.factors is None:
        if offsets is not None:
            scales = torch.stack((scales, offsets), dim=-1).view(torch.int32).flatten(1)
        return PackedWeight(layout, numbers, scales, None)
    offset_factors = torch.zeros_like(blocks.factors) if blocks.offset_factors is None else blocks.offset_factors
    factors = torch.cat((blocks.factors, offset_factors), dim=-1).view(torch.int32).flatten(1)
    return PackedWeight(layout, numbers, _scale_words(layout, scales, offsets), factors)


def _words(bits: int, numbers: Tensor) -> Tensor:
    """Return numbers [out, in] uint8 in words, [out, in * bits / 32], in the order that PackedLayout describes."""
    lanes = numbers.reshape(len(numbers), -1, 16 // bits, 4, 2).permute(0, 1, 3, 4, 2).flatten(1)
    if bits == 4:
        lanes = lanes[:, ::2] | lanes[:, 1::2] << 4
    return lanes.contiguous().view(torch.int32)


def _scale_words(layout: PackedLayout, scales: Tensor, offsets: Tensor | None) -> Tensor:
    """Return the scales and offsets [out, groups] of each 64 inputs in a word, [out, words]."""
    per_word = WORD_INPUTS // layout.group
    shifts = torch.arange(per_word, device=scales.device) * layout.scale_bits
    words = (scales.reshape(len(scales), -1, per_word).long() << shifts).sum(-1)
    if offsets is not None:
        words += (offsets.reshape(len(offsets), -1, per_word).long() << shifts + 16).sum(-1)
    return words.to(torch.int32)  # the highest bit becomes the sign


def _padded(part: Tensor, width: int) -> Tensor:
    return F.pad(part, (0, width - part.shape[1]))


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    some = [part for part in parts if part is not None]
    return torch.cat(some) if some else None
