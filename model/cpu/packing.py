"""Packing: weights in the order in which the kernels read them, in tiles of 32 outputs."""

from collections.abc import Sequence
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from caravan.model.blocks import BLOCK_SIZES, NVFP4_WITH_FACTOR, NotFinite, StoredRows
from caravan.model.cpu.arena import Arena
from caravan.model.cpu.kernels import Kernels, WeightFormat
from caravan.model.quantization import BYTE_GROUP, GROUP, ByteWeight, GroupedWeight

TILE = 32  # outputs that are stored together
BLOCK_FORMATS = MappingProxyType(  # kind of blocks in a file -> format that keeps them without loss
    {
        "Q4_1": WeightFormat.GRID_4_INT8,
        "Q5_1": WeightFormat.GRID_5_INT8,
        NVFP4_WITH_FACTOR: WeightFormat.NVFP4,
        **{kind: WeightFormat(kind) for kind in BLOCK_SIZES if kind not in ("Q4_1", "Q5_1", NVFP4_WITH_FACTOR)},
    }
)
_BYTES_OF_TILE = MappingProxyType(  # format -> inputs and bytes that stand together in a tile: scales, then values
    {
        WeightFormat.BFLOAT16: (2, 2 * TILE * 2),
        WeightFormat.INT8: (BYTE_GROUP, TILE * (2 + BYTE_GROUP)),
        WeightFormat.GRID_8: (GROUP, TILE * (4 + GROUP)),
        WeightFormat.GRID_4: (GROUP, TILE * (4 + GROUP // 2)),
        WeightFormat.GRID_5_INT8: (GROUP, TILE * (4 + GROUP * 5 // 8)),
        WeightFormat.GRID_4_INT8: (GROUP, TILE * (4 + GROUP // 2)),
        WeightFormat.Q4_0: (GROUP, TILE * (2 + GROUP // 2)),
        WeightFormat.Q5_0: (GROUP, TILE * (2 + GROUP * 5 // 8)),
        WeightFormat.Q8_0: (GROUP, TILE * (2 + GROUP)),
        WeightFormat.IQ4_NL: (GROUP, TILE * (2 + GROUP // 2)),
        WeightFormat.IQ4_XS: (256, TILE * (2 + 8 + 128)),
        WeightFormat.MXFP4: (GROUP, TILE * (2 + GROUP // 2)),
        WeightFormat.NVFP4: (2 * GROUP, TILE * (4 + 4 + GROUP)),
        WeightFormat.Q2_K: (256, TILE * (4 + 32 + 64)),
        WeightFormat.Q3_K: (256, TILE * (2 + 16 + 96)),
        WeightFormat.Q4_K: (256, TILE * (4 + 16 + 128)),
        WeightFormat.Q5_K: (256, TILE * (4 + 16 + 160)),
        WeightFormat.Q6_K: (256, TILE * (2 + 16 + 192)),
    }
)


def num_packed_bytes(num_outputs: int, num_inputs: int, weight_format: WeightFormat) -> int:
    """Return the size of a packed weight."""
    num_together, num_bytes = _BYTES_OF_TILE[weight_format]
    return -(-num_outputs // TILE) * -(-num_inputs // num_together) * num_bytes


def pack_blocks(rows: Sequence[StoredRows], num_inputs: int, kernels: Kernels, arena: Arena) -> Tensor:
    """Return rows in blocks of one kind, packed one after the other. Raises NotFinite."""
    kind, num_outputs = rows[0].kind, sum(len(some.order) for some in rows)
    packed = arena.empty(num_packed_bytes(num_outputs, num_inputs, BLOCK_FORMATS[kind]))
    if not kernels.pack_blocks([some.stored for some in rows], [some.order for some in rows], kind, packed):
        raise NotFinite
    return packed


def pack_bfloat16(weight: Tensor) -> Tensor:
    """Return weight [out, in] as bytes in the order [tile of 32 outputs][pair of inputs][32][2], bfloat16."""
    num_outputs, num_inputs = weight.shape
    padded = F.pad(weight.to(torch.bfloat16), (0, num_inputs % 2, 0, -num_outputs % TILE))
    tiles = padded.view(-1, TILE, padded.shape[1] // 2, 2)
    return tiles.transpose(1, 2).contiguous().view(torch.uint8).flatten()


def pack_bytes(weight: ByteWeight) -> Tensor:
    """Return the weight as bytes: for each tile of 32 outputs and group of 64 inputs, scales, then values + 128.

    Values are [quad of inputs][32 outputs][4].
    """
    num_outputs, num_inputs = weight.values.shape
    missing = -num_outputs % TILE
    values = F.pad(weight.values.view(torch.uint8) ^ 128, (0, -num_inputs % BYTE_GROUP, 0, missing), value=128)
    values = values.view(-1, TILE, values.shape[1] // BYTE_GROUP, BYTE_GROUP // 4, 4).permute(0, 2, 3, 1, 4)
    scales = F.pad(weight.scales, (0, 0, 0, missing)).view(-1, TILE, weight.scales.shape[1]).transpose(1, 2)
    return torch.cat((scales.contiguous().view(torch.uint8), values.flatten(2)), dim=-1).flatten()


def pack_grid(weight: GroupedWeight) -> Tensor:
    """Return the weight as bytes: for each tile of 32 outputs and group of 32 inputs, scales, offsets and values.

    Values of 8 bits are [quad of inputs][32 outputs][4]; of 4 bits [quad][16][4], outputs 0 to 15 in the low halves.
    """
    num_outputs, num_inputs = weight.shape
    missing = -num_outputs % TILE
    values = F.pad(weight.values, (0, -num_inputs % GROUP, 0, missing))
    values = values.view(-1, TILE, values.shape[1] // GROUP, GROUP // 4, 4).permute(0, 2, 3, 1, 4)
    if weight.bits == 4:
        values = values[..., : TILE // 2, :] | values[..., TILE // 2 :, :] << 4
    grid = torch.stack((weight.scales, weight.offsets), dim=-1)  # [out, groups, 2]
    grid = F.pad(grid, (0, 0, 0, 0, 0, missing)).view(-1, TILE, grid.shape[1], 2).permute(0, 2, 3, 1)
    return torch.cat((grid.contiguous().view(torch.uint8).flatten(2), values.flatten(2)), dim=-1).flatten()
