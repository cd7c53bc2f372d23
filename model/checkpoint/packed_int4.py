"""Matrices in 4 bits as AWQ, GPTQ and compressed-tensors pack them: eight numbers in 32 bits.

A weight is (q - zero) * scale, with a scale and a zero for each group of inputs. Sources: vLLM's and transformers'
readers of these formats, and the compressed-tensors package.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from caravan.model.checkpoint.json_file import JsonFile
from caravan.model.checkpoint.nibbles import in_halves, transposed, unpacked
from caravan.model.checkpoint.stored_matrix import (
    GROUP,
    Blocks,
    QuantizedTensor,
    ReadRows,
    StoredMatrix,
    unsupported,
    weight_schemes,
)

_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where each of eight outputs is, in 4 bits of 32
_WORDS = ("I32",)

Make = Callable[[StoredMatrix], QuantizedTensor]


@dataclass(frozen=True)
class Grid:
    """The matrix (q - zeros) * scales, of which each function reads some rows."""

    groups: Tensor  # [in] int64: which scale and zero an input has
    packed: ReadRows  # [rows, in / 2] uint8 or longer: q of two inputs in each byte, the first in the low half
    scales: ReadRows  # [rows, groups]
    zeros: ReadRows  # [rows, groups]

    def widen(self, rows: slice) -> Tensor:
        """Return rows of the matrix in float32."""
        wide = unpacked(self.packed(rows))[:, : len(self.groups)].float()
        wide.sub_(self.zeros(rows).float().index_select(1, self.groups))
        return wide.mul_(self.scales(rows).float().index_select(1, self.groups))

    def heads(self, kind: str, rows: slice) -> Tensor:
        """Return the heads of blocks of Q4_0, whose zeros are 8, or Q4_1, with an offset of -zero * scale."""
        starts = self.groups[::GROUP]
        # Zeros are read for either kind: what reads them raises if those of Q4_0 are not 8.
        scales, zeros = self.scales(rows)[:, starts], self.zeros(rows)[:, starts]  # [rows, blocks]
        head = [scales.half()]
        if kind == "Q4_1":
            head.append((-zeros.float() * scales.float()).half())
        return torch.stack(head, dim=-1).view(torch.uint8)  # [rows, blocks, 2 or 4]

    def values(self, rows: slice) -> Tensor:
        """Return the values of the same blocks, [rows, blocks, 16] uint8."""
        return in_halves(self.packed(rows), GROUP)


def awq(config: JsonFile) -> Make:
    """Return what reads the matrices of a model by AWQ: qweight [in, out / 8], qzeros [groups, out / 8]."""
    bits, version = config.integer("bits", 4), config.text("version", "gemm").lower()
    if bits != 4 or version != "gemm":
        raise unsupported(config, f"quantized by AWQ in {bits} bits, version {ascii(version)[1:-1][:20]}")
    has_zeros, group_size = config.flag("zero_point", True), config.integer("group_size", 128)

    def make(stored: StoredMatrix) -> QuantizedTensor:
        num_inputs, num_packed = stored.shape("qweight")
        groups = _groups(stored, num_inputs, group_size)
        num_groups = int(groups[-1]) + 1
        if num_inputs % 2:
            raise stored.broken(f"it has {num_inputs} inputs, an odd number")

        def packed(rows: slice) -> Tensor:
            words, rest = _words_of(rows)
            return transposed(stored.load_as(_WORDS, "qweight", num_inputs, num_packed)[:, words])[rest]

        def zeros(rows: slice) -> Tensor:
            words, rest = _words_of(rows)
            return _unpacked(stored.load_as(_WORDS, "qzeros", num_groups, num_packed)[:, words], _AWQ_PLACES).T[rest]

        grid = Grid(
            groups,
            packed,
            lambda rows: stored.load("scales", num_groups, 8 * num_packed).T[rows],
            zeros if has_zeros else _symmetric(num_groups),
        )
        sources = stored.names("qweight", "qzeros", "scales")
        return _of_grid((8 * num_packed, num_inputs), sources, grid, is_symmetric=not has_zeros)

    return make


def gptq(config: JsonFile) -> Make:
    """Return what reads the matrices of a model by GPTQ: qweight [in / 8, out], qzeros [groups, out / 8], g_idx."""
    bits, form = config.integer("bits"), config.text("checkpoint_format", "gptq")
    if bits != 4 or form not in ("gptq", "gptq_v2"):
        raise unsupported(config, f"quantized by GPTQ in {bits} bits, form {ascii(form)[1:-1][:20]}")
    is_symmetric, group_size = config.flag("sym", True), config.integer("group_size", 128)
    added = 1 if form == "gptq" else 0  # the older form stores zeros less one

    def make(stored: StoredMatrix) -> QuantizedTensor:
        num_packed, num_outputs = stored.shape("qweight")
        in_order = _groups(stored, 8 * num_packed, group_size)
        num_groups = int(in_order[-1]) + 1
        groups = _stated_groups(stored, "g_idx", in_order)

        def packed(rows: slice) -> Tensor:
            words = stored.load_as(_WORDS, "qweight", num_packed, num_outputs)[:, rows]
            return words.T.contiguous().view(torch.uint8)

        def zeros(rows: slice) -> Tensor:
            words, rest = _words_of(rows)
            stated = stored.load_as(_WORDS, "qzeros", num_groups, num_outputs // 8)[:, words]
            found = _unpacked(stated).T[rest] + added
            if is_symmetric:
                # Some files state the older form and have the newer one; 8 is meant by either.
                if not ((found == 8) | (found == 8 + added)).all():
                    raise stored.broken("its zero points are not symmetric, although sym is true")
                found = torch.full_like(found, 8)
            return found

        grid = Grid(groups, packed, lambda rows: stored.load("scales", num_groups, num_outputs).T[rows], zeros)
        sources = stored.names("qweight", "qzeros", "scales", "g_idx")
        return _of_grid((num_outputs, 8 * num_packed), sources, grid, is_symmetric=is_symmetric)

    return make


def compressed_int4(config: JsonFile) -> Make:
    """Return what reads the matrices of a model by compressed-tensors: weight_packed [out, in / 8]."""
    schemes = weight_schemes(config)
    if len(schemes) != 1 or schemes[0].get("num_bits") != 4:
        raise unsupported(config, "quantized by compressed-tensors with other than 4 bits, or in several ways")

    def make(stored: StoredMatrix) -> QuantizedTensor:
        num_outputs, num_packed = stored.shape("weight_packed")
        rows, num_inputs = (int(size) for size in stored.load("weight_shape", 2))
        num_groups = stored.shape("weight_scale")[1]
        if rows != num_outputs or -(-num_inputs // 8) != num_packed or num_groups < 1 or num_inputs % num_groups:
            raise stored.broken(f"weight_shape is {[rows, num_inputs]}, which does not fit its other tensors")
        groups = _stated_groups(stored, "weight_g_idx", _groups(stored, num_inputs, num_inputs // num_groups))
        is_symmetric = not stored.has("weight_zero_point")

        def packed(rows: slice) -> Tensor:
            return stored.load_as(_WORDS, "weight_packed", num_outputs, num_packed)[rows].view(torch.uint8)

        def zeros(rows: slice) -> Tensor:
            words, rest = _words_of(rows)
            stated = stored.load_as(_WORDS, "weight_zero_point", -(-num_outputs // 8), num_groups)[words]
            return _unpacked(stated.T).T[rest]

        grid = Grid(
            groups,
            packed,
            lambda rows: stored.load("weight_scale", num_outputs, num_groups)[rows],
            _symmetric(num_groups) if is_symmetric else zeros,
        )
        sources = stored.names("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
        return _of_grid((num_outputs, num_inputs), sources, grid, is_symmetric=is_symmetric)

    return make


def _of_grid(shape: tuple[int, int], sources: tuple[str, ...], grid: Grid, *, is_symmetric: bool) -> QuantizedTensor:
    """Return the matrix of a grid; it fits blocks if each 32 inputs are in one group."""
    groups, blocks = grid.groups, None
    if len(groups) % GROUP == 0 and torch.equal(groups, groups[::GROUP].repeat_interleave(GROUP)):
        kind = "Q4_0" if is_symmetric else "Q4_1"
        blocks = Blocks(kind=kind, shape=shape, heads=functools.partial(grid.heads, kind), values=grid.values)
    return QuantizedTensor(shape=shape, sources=sources, widen=grid.widen, blocks=blocks)


def _groups(stored: StoredMatrix, num_inputs: int, group_size: int) -> Tensor:
    """Return the group of each input, [in], in their order; a group of size -1 has all inputs."""
    size = num_inputs if group_size == -1 else group_size
    if num_inputs < 1 or size < 1 or num_inputs % size:
        raise stored.broken(f"groups of {group_size} do not divide {num_inputs} inputs")
    return torch.arange(num_inputs) // size


def _stated_groups(stored: StoredMatrix, leaf: str, in_order: Tensor) -> Tensor:
    """Return the group of each input that a tensor states, or `in_order` if there is no such tensor."""
    if not stored.has(leaf):
        return in_order
    groups = stored.load(leaf, len(in_order)).long()
    if int(groups.min()) < 0 or int(groups.max()) > int(in_order[-1]):
        raise stored.broken(f"{leaf} names groups that are not there")
    return groups


def _unpacked(packed: Tensor, places: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Return the eight numbers of 4 bits in each element of `packed` [n, m] int32, [n, 8 m]."""
    return torch.stack([packed >> 4 * place & 15 for place in places], dim=-1).flatten(-2)


def _symmetric(num_groups: int) -> ReadRows:
    """Return what returns zeros of 8, [rows, groups]."""
    return lambda rows: torch.full((rows.stop - rows.start, num_groups), 8)


def _words_of(rows: slice) -> tuple[slice, slice]:
    """Return the words in which eight rows stand together, and the places of rows among those of the words."""
    first = rows.start // 8
    return slice(first, -(-rows.stop // 8)), slice(rows.start - 8 * first, rows.stop - 8 * first)
