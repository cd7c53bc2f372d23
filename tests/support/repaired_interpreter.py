"""Triton's interpreter with the arithmetic of a GPU, where its own differs.

- bfloat16: a GPU computes in float32 and rounds to nearest, ties to even. The interpreter of Triton 3.7.1 computes with
  the 16 bits as if they were integers, and truncates when it converts, without a warning.
- Matrix products: a GPU sums every element of a tile in one order. numpy's library sums rows and columns differently by
  their place in the tile and by the tile's size, so equal bits could not be compared.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_binary_op: Callable[..., Any] = InterpreterBuilder.binary_op
_create_dot: Callable[..., Any] = InterpreterBuilder.create_dot
_cast_impl: Callable[..., Any] = InterpreterBuilder.cast_impl
_create_fp_to_fp: Callable[..., Any] = InterpreterBuilder.create_fp_to_fp


@contextmanager
def repaired_interpreter() -> Iterator[None]:
    """Compute as a GPU does, inside the context."""
    with ExitStack() as stack:
        for repair in (binary_op, create_dot, cast_impl, create_fp_to_fp):
            stack.enter_context(mock.patch.object(InterpreterBuilder, repair.__name__, repair))
        yield


def widened(handle: Any) -> Any:
    """Return a handle of bfloat16 in float32; others as they are."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = np.asarray(handle.data, np.uint16).astype(np.uint32) << np.uint32(16)
    return TensorHandle(bits.view(np.float32), tl.float32)


def narrowed(numbers: Any) -> Any:
    """Return numbers as the 16 bits of the nearest bfloat16, ties to even; a NaN stays one."""
    wide = np.ascontiguousarray(numbers, np.float32).reshape(np.shape(numbers))
    bits = wide.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(wide), np.uint32(0x7FC0), rounded).astype(np.uint16)


def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
    """Return op(lhs, rhs); a comparison gives bits, other operations in bfloat16 a bfloat16."""
    if tl.bfloat16 not in (lhs.dtype.scalar, rhs.dtype.scalar):
        return _binary_op(self, lhs, rhs, op)
    result = _binary_op(self, widened(lhs), widened(rhs), op)
    return result if result.data.dtype == np.bool_ else TensorHandle(narrowed(result.data), tl.bfloat16)


def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
    """Return a @ b + d; in float32 summed from the first to the last number of a row, whatever the tile's shape."""
    a, b = widened(a), widened(b)
    if a.dtype.scalar != tl.float32 or d.dtype.scalar != tl.float32:
        return _create_dot(self, a, b, d, *options)
    total = d.data.copy()
    for k in range(a.data.shape[-1]):
        total += a.data[..., :, k, None] * b.data[..., k, None, :]
    return TensorHandle(total, tl.float32)


def cast_impl(self: Any, source: Any, target: Any) -> Any:
    """Return the source in the target's type."""
    wide = widened(source)
    if target.scalar == tl.bfloat16:
        return TensorHandle(narrowed(wide.data), tl.bfloat16)
    return wide if wide.dtype.scalar == target.scalar else _cast_impl(self, wide, target)


def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
    """Return the source in the target's floating-point type."""
    if tl.bfloat16 in (source.dtype.scalar, target.scalar):
        return cast_impl(self, source, target)
    return _create_fp_to_fp(self, source, target, rounding)
