"""Matrices as bitsandbytes has them: 4 bits that stand for numbers in a table, or bytes with a scale for each row."""

import json

import torch
from torch import Tensor

from caravan.model.checkpoint.json_file import JsonFile
from caravan.model.checkpoint.nibbles import look_up_pairs
from caravan.model.checkpoint.packed_int4 import Make
from caravan.model.checkpoint.scaled_bytes import scaled_bytes
from caravan.model.checkpoint.stored_matrix import QuantizedTensor, StoredMatrix, unsupported

_TABLES = ("nf4", "fp4")
_MAX_STATE_BYTES = 2**16
_STORAGE = ("U8", "I8", "F16", "BF16", "F32")  # types that the bytes of a matrix may be stored as


def bitsandbytes(config: JsonFile) -> Make:
    """Return what reads the matrices of a model by bitsandbytes."""
    if config.flag("load_in_4bit", False):
        return _tabled
    if config.flag("load_in_8bit", False):
        return _bytes_of_rows
    raise unsupported(config, "quantized by bitsandbytes in neither 4 nor 8 bits")


def _bytes_of_rows(stored: StoredMatrix) -> QuantizedTensor:
    """Return weight [out, in] int8, whose rows have the largest magnitudes SCB [out]."""
    if stored.has("weight_format") and int(stored.load_as(("U8", "I8", "I32", "I64"), "weight_format")) != 0:
        raise unsupported(stored.config, "quantized by bitsandbytes in the order of a GPU's tiles")
    return scaled_bytes(stored)


def _tabled(stored: StoredMatrix) -> QuantizedTensor:
    """Return a matrix by rows, two numbers in each byte, the first one in its high half.

    Each number is a place in quant_map [16]; it is multiplied by the absmax of its block. With nested_absmax, absmax
    itself is stored as places in nested_quant_map [256]. Source: QuantState in bitsandbytes/functional.py.
    """
    state = _state(stored)
    shape, block_size = state.items("shape"), state.integer("blocksize")
    if len(shape) != 2 or not all(type(size) is int and size > 0 for size in shape):
        raise stored.broken(f"its quant_state has the shape {ascii(shape)[:40]}")
    if not 1 < block_size <= 2**16 or block_size % 2:
        raise stored.broken(f"its quant_state has blocks of {block_size}")
    num_outputs, num_inputs = shape
    num_numbers = num_outputs * num_inputs
    num_blocks = -(-num_numbers // block_size)

    def absmax(first: int, end: int) -> Tensor:
        """Return the largest magnitudes of some blocks."""
        if not stored.has("weight.nested_absmax"):
            return stored.load_as(("F32",), "weight.absmax", num_blocks)[first:end]
        size = state.integer("nested_blocksize")
        if size < 1:
            raise stored.broken(f"its quant_state has nested blocks of {size}")
        places = stored.load_as(("U8",), "weight.absmax", num_blocks)[first:end]
        table = stored.load_as(("F32",), "weight.nested_quant_map", 256)
        scales = stored.load_as(("F32",), "weight.nested_absmax", -(-num_blocks // size))
        factors = scales.index_select(0, torch.arange(first, end) // min(size, num_blocks))
        return table.index_select(0, places.int()) * factors + state.number("nested_offset")

    def widen(rows: slice) -> Tensor:
        first, end = rows.start * num_inputs // block_size, -(-rows.stop * num_inputs // block_size)  # blocks
        table = stored.load_as(("F32",), "weight.quant_map", 16)
        packed = stored.load_as(_STORAGE, "weight", *stored.shape("weight")).contiguous().view(torch.uint8).flatten()
        if len(packed) != -(-num_numbers // 2):
            raise stored.broken(f"weight has {len(packed)} bytes, which do not fit {num_numbers} numbers")
        packed = packed[first * block_size // 2 : end * block_size // 2]  # blocks are even, and bytes are whole
        numbers = torch.zeros((end - first) * block_size // 2, 2)
        numbers[: len(packed)] = look_up_pairs(packed, table).flip(1)
        numbers.view(-1, block_size).mul_(absmax(first, end).unsqueeze(1))
        start, count = rows.start * num_inputs - first * block_size, (rows.stop - rows.start) * num_inputs
        return numbers.view(-1)[start : start + count].view(-1, num_inputs)

    leaves = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", *map(_state_leaf, _TABLES))
    return QuantizedTensor(
        shape=(num_outputs, num_inputs),
        sources=stored.names("weight", *(f"weight.{leaf}" for leaf in leaves)),
        widen=widen,
    )


def _state_leaf(table: str) -> str:
    return f"quant_state.bitsandbytes__{table}"


def _state(stored: StoredMatrix) -> JsonFile:
    """Return the state of a matrix: a JSON object in a tensor of bytes."""
    leaf = next((f"weight.{_state_leaf(table)}" for table in _TABLES if stored.has(f"weight.{_state_leaf(table)}")), "")
    (num_bytes,) = stored.shape(leaf or "weight.quant_state", num_dims=1)
    if num_bytes > _MAX_STATE_BYTES:
        raise stored.broken(f"{leaf} has {num_bytes} bytes, more than {_MAX_STATE_BYTES}")
    content = bytes(stored.load_as(("U8",), leaf, num_bytes).tolist())
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise stored.broken(f"{leaf} does not hold a JSON object")
    return JsonFile(stored.config.path, fields)
