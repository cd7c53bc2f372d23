"""Rows: residual and norm, the norm of single heads, and SwiGLU, each in one kernel."""

import torch
from torch import Tensor

from caravan.model.cuda.heads import padded_dim
from caravan.model.cuda.rows_kernels import add_and_normalize, gate, normalize_heads

GATE_BLOCK = 1024


def norm_warps(width: int) -> int:
    """Return the warps of a row's norm: one for each 512 numbers, at most 16."""
    return max(1, min(16, padded_dim(width) // 512))


def normalized(residual: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return residual + added, or the residual if there is nothing to add, and its RMSNorm; all [T, width]."""
    num_rows, width = residual.shape
    assert residual.is_contiguous()
    output = torch.empty_like(residual)
    total = residual if added is None else torch.empty_like(residual)
    if added is not None:
        assert added.is_contiguous()
    add_and_normalize[(num_rows,)](
        residual,
        residual if added is None else added,
        weight,
        total,
        output,
        eps,
        WIDTH=width,
        BLOCK=padded_dim(width),
        HAS_ADDED=added is not None,
        num_warps=norm_warps(width),
        enable_fp_fusion=False,
    )
    return total, output


def normalize_heads_(qkv: Tensor, num_kv_heads: int, query_weight: Tensor, key_weight: Tensor, eps: float) -> None:
    """Normalize the query and key heads of qkv [T, num_heads + 2 num_kv_heads, head_dim] in place."""
    num_tokens, num_rows, head_dim = qkv.shape
    num_heads = num_rows - 2 * num_kv_heads
    normalize_heads[(num_tokens, num_heads + num_kv_heads)](
        qkv,
        query_weight,
        key_weight,
        qkv.stride(0),
        eps,
        NUM_HEADS=num_heads,
        HEAD_DIM=head_dim,
        DIM=padded_dim(head_dim),
        num_warps=1,
        enable_fp_fusion=False,
    )


def swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up, [T, width], for gate_up [T, 2 width], contiguous: gates, then the other half."""
    num_rows, both = gate_up.shape
    assert gate_up.is_contiguous()
    output = torch.empty(num_rows, both // 2, dtype=gate_up.dtype, device=gate_up.device)
    gate[(num_rows, -(-both // 2 // GATE_BLOCK))](
        gate_up, output, both // 2, BLOCK=GATE_BLOCK, num_warps=4, enable_fp_fusion=False
    )
    return output
