"""Matrices in 4 bits as AWQ, GPTQ and compressed-tensors pack them: eight numbers in 32 bits.

A weight is (q - zero) * scale, with a scale and a zero for each group of inputs. Sources: vLLM's and transformers'
readers of these formats, and the compressed-tensors package.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from caravan.model.checkpoint.json_file import JsonFile
from caravan.model.checkpoint.nibbles import in_halves, transposed, unpacked
from caravan.model.checkpoint.stored_matrix import GROUP, QuantizedTensor, StoredMatrix, unsupported, weight_schemes

_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where each of eight outputs is, in 4 bits of 32
_WORDS = ("I32",)

Make = Callable[[StoredMatrix], QuantizedTensor]


@dataclass(frozen=True)
class Grid:
    """The matrix (q - zeros) * scales, where `groups` says which scale and zero an input has."""

    packed: Tensor  # [out, in / 2] uint8 or longer: q of two inputs in each byte, the first in the low half
    scales: Tensor  # [out, groups]
    zeros: Tensor  # [out, groups]
    groups: Tensor  # [in] int64

    def widen(self) -> Tensor:
        """Return the matrix [out, in] in float32."""
        wide = unpacked(self.packed)[:, : len(self.groups)].float()
        wide.sub_(self.zeros.float().index_select(1, self.groups))
        return wide.mul_(self.scales.float().index_select(1, self.groups))

    def blocks(self, kind: str) -> Tensor:
        """Return the matrix in blocks of Q4_0, whose zeros are 8, or Q4_1, with an offset of -zero * scale."""
        starts = self.groups[::GROUP]
        scales = self.scales[:, starts].half()  # [out, blocks]
        head = [scales]
        if kind == "Q4_1":
            head.append((-self.zeros[:, starts].float() * self.scales[:, starts].float()).half())
        numbers = torch.stack(head, dim=-1).view(torch.uint8)  # [out, blocks, 2 or 4]
        return torch.cat((numbers, in_halves(self.packed, GROUP)), dim=-1).flatten(1)


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

        def read() -> Grid:
            zeros = torch.full((8 * num_packed, num_groups), 8)
            if has_zeros:
                zeros = _unpacked(stored.load_as(_WORDS, "qzeros", num_groups, num_packed), _AWQ_PLACES).T
            packed = transposed(stored.load_as(_WORDS, "qweight", num_inputs, num_packed))
            return Grid(packed, stored.load("scales", num_groups, 8 * num_packed).T, zeros, groups)

        sources = stored.names("qweight", "qzeros", "scales")
        return _of_grid((8 * num_packed, num_inputs), sources, read, groups, is_symmetric=not has_zeros)

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

        def read() -> Grid:
            zeros = _unpacked(stored.load_as(_WORDS, "qzeros", num_groups, num_outputs // 8)).T + added
            if is_symmetric:
                # Some files state the older form and have the newer one; 8 is meant by either.
                if not ((zeros == 8) | (zeros == 8 + added)).all():
                    raise stored.broken("its zero points are not symmetric, although sym is true")
                zeros = torch.full_like(zeros, 8)
            words = stored.load_as(_WORDS, "qweight", num_packed, num_outputs)
            return Grid(
                words.T.contiguous().view(torch.uint8), stored.load("scales", num_groups, num_outputs).T, zeros, groups
            )

        sources = stored.names("qweight", "qzeros", "scales", "g_idx")
        return _of_grid((num_outputs, 8 * num_packed), sources, read, groups, is_symmetric=is_symmetric)

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

        def read() -> Grid:
            zeros = torch.full((num_outputs, num_groups), 8)
            if not is_symmetric:
                packed = stored.load_as(_WORDS, "weight_zero_point", -(-num_outputs // 8), num_groups)
                zeros = _unpacked(packed.T)[:, :num_outputs].T
            words = stored.load_as(_WORDS, "weight_packed", num_outputs, num_packed)
            return Grid(words.view(torch.uint8), stored.load("weight_scale", num_outputs, num_groups), zeros, groups)

        sources = stored.names("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
        return _of_grid((num_outputs, num_inputs), sources, read, groups, is_symmetric=is_symmetric)

    return make


def _of_grid(
    shape: tuple[int, int], sources: tuple[str, ...], read: Callable[[], Grid], groups: Tensor, *, is_symmetric: bool
) -> QuantizedTensor:
    """Return the matrix whose grid `read` reads; it fits blocks if each 32 inputs are in one group."""
    fits = len(groups) % GROUP == 0 and torch.equal(groups, groups[::GROUP].repeat_interleave(GROUP))
    kind = ("Q4_0" if is_symmetric else "Q4_1") if fits else None
    return QuantizedTensor(
        shape=shape,
        sources=sources,
        widen=lambda: read().widen(),
        kind=kind,
        blocks=None if kind is None else lambda: read().blocks(kind),
    )


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
