"""bfloat16 in Triton's interpreter, which by itself computes with its 16 bits as if they were integers.

A GPU computes a bfloat16 operation in float32 and rounds the result to nearest, ties to even. Triton 3.7.1 and 3.9.0
do neither in their interpreter, without a warning.
"""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


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


def _rounded(handle: Any) -> Any:
    """Return the float32 result of an operation in bfloat16; a comparison's result as it is."""
    if handle.data.dtype == np.bool_:
        return handle
    return TensorHandle(narrowed(handle.data), tl.bfloat16)


_binary_op: Callable[..., Any] = InterpreterBuilder.binary_op
_unary_op: Callable[..., Any] = InterpreterBuilder.unary_op
_create_dot: Callable[..., Any] = InterpreterBuilder.create_dot
_cast_impl: Callable[..., Any] = InterpreterBuilder.cast_impl


def _repaired_binary(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
    if tl.bfloat16 not in (lhs.dtype.scalar, rhs.dtype.scalar):
        return _binary_op(self, lhs, rhs, op)
    return _rounded(_binary_op(self, widened(lhs), widened(rhs), op))


def _repaired_unary(self: Any, arg: Any, op: Any) -> Any:
    result = _unary_op(self, widened(arg), op)
    return _rounded(result) if arg.dtype.scalar == tl.bfloat16 else result


def _repaired_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
    return _create_dot(self, widened(a), widened(b), d, *options)


def _repaired_cast(self: Any, source: Any, target: Any) -> Any:
    wide = widened(source)
    if target.scalar != tl.bfloat16:
        return _cast_impl(self, wide, target) if wide.dtype != target.scalar else wide
    return TensorHandle(narrowed(wide.data), tl.bfloat16)


def _repaired_conversion(self: Any, source: Any, target: Any, rounding: Any) -> Any:
    if tl.bfloat16 in (source.dtype.scalar, target.scalar):
        return _repaired_cast(self, source, target)
    return _create_conversion(self, source, target, rounding)


_create_conversion: Callable[..., Any] = InterpreterBuilder.create_fp_to_fp

REPAIRS = {
    "binary_op": _repaired_binary,
    "unary_op": _repaired_unary,
    "create_dot": _repaired_dot,
    "cast_impl": _repaired_cast,
    "create_fp_to_fp": _repaired_conversion,
}


@contextmanager
def repaired_bfloat16() -> Any:
    """Compute in bfloat16 as a GPU does, inside the context."""
    with ExitStack() as stack:
        for name, repair in REPAIRS.items():
            stack.enter_context(mock.patch.object(InterpreterBuilder, name, repair))
        yield
