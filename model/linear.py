"""Linear: a matrix product whose rows do not depend on each other."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MAX_AMX_ROWS = 32  # two tiles of 16


def row_invariant_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T, shape [T, out], where the bits of each row depend on that row and the weight alone.

    A BLAS library may sum a row in another order when the batch has another size, and then the logits of a request
    depend on the other requests. Measured on CPU with torch 2.13, float32 and bfloat16, 1 to 4,096 rows: oneDNN has
    one order for two rows or more and another for a single row; MKL, which torch prefers for float32, changes it with
    the size of the batch. So oneDNN is called directly, and a single row is computed as two. Without AVX-512 oneDNN
    has no product in bfloat16; that is computed in float32 and rounded once for each element. With AMX it sums
    bfloat16 in one order for up to 32 rows and in another for more, so more rows are computed in pieces.
    """
    if x.device.type != "cpu" or not torch._C._has_mkldnn:
        return F.linear(x, weight)
    if x.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return row_invariant_linear(x.float(), weight.float()).to(torch.bfloat16)
    num_rows = x.shape[0]
    if num_rows > _MAX_AMX_ROWS and x.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return torch.cat([row_invariant_linear(rows, weight) for rows in torch.split(x, _MAX_AMX_ROWS)])
    if num_rows == 1:
        x = x.expand(2, -1).contiguous()
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product[:num_rows]


class Linear(nn.Module):
    """A linear layer; weight [out_features, in_features], bias [out_features] or None."""

    def __init__(self, in_features: int, out_features: int, *, has_bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if has_bias else None

    def keep_outputs(self, num_outputs: int) -> None:
        """Have fewer outputs than at first; weights are placed afterwards."""
        for name, parameter in list(self.named_parameters(recurse=False)):
            if len(parameter) == self.out_features:
                kept = parameter.new_empty(num_outputs, *parameter.shape[1:])
                setattr(self, name, nn.Parameter(kept, requires_grad=False))
        self.out_features = num_outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return x [T, in_features] times the weight, plus the bias, shape [T, out_features]."""
        product = row_invariant_linear(x, self.weight)
        return product if self.bias is None else product + self.bias
