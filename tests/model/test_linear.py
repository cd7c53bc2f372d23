"""Linear: the same bits on processors without some instructions."""

import pytest
import torch
import torch.nn.functional as F

from caravan.model.linear import Linear, row_invariant_linear


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def test_without_onednn_the_product_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = random(5, 8), random(6, 8)
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    assert torch.equal(row_invariant_linear(x, weight), F.linear(x, weight))


def test_without_bfloat16_instructions_the_product_is_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    x, weight = random(5, 8, dtype=torch.bfloat16), random(6, 8, dtype=torch.bfloat16)
    product = row_invariant_linear(x, weight)
    assert product.dtype == torch.bfloat16
    assert torch.equal(product, row_invariant_linear(x.float(), weight.float()).to(torch.bfloat16))


def test_with_amx_many_rows_are_computed_in_pieces_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(8, 6, has_bias=True)
    layer.weight.copy_(random(6, 8))
    assert layer.bias is not None
    layer.bias.copy_(random(6))
    layer.to(torch.bfloat16)
    x = random(70, 8, dtype=torch.bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    rows = torch.cat([layer(row) for row in torch.split(x, 32)])
    assert torch.equal(layer(x), rows)
