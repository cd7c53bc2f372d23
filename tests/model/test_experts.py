"""A mixture of experts against its formula; and rows that do not depend on their company."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from caravan.model.clamped_swiglu import clamped_swiglu
from caravan.model.config import ModelConfig, UnsupportedModel
from caravan.model.experts import Experts, choose_experts
from caravan.model.feed_forward import FeedForward
from tests.support.tiny_llama import TINY, tiny_llama

LOGITS = torch.tensor([[0.0, math.log(3), math.log(2), math.log(2)], [5.0, 5.0, 5.0, 5.0]])


def experts_of(num_experts: int, num_chosen: int, dtype: torch.dtype = torch.float32) -> Experts:
    model = tiny_llama(dtype=dtype, num_layers=1, num_experts=num_experts, num_chosen_experts=num_chosen)
    experts = model.blocks()[0].feed_forward
    assert isinstance(experts, Experts)
    return experts


def rows_of(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, TINY.hidden_size, generator=torch.Generator().manual_seed(3)).to(dtype)


def test_the_likeliest_experts_are_chosen_and_the_first_of_equal_ones() -> None:
    chosen, weights = choose_experts(LOGITS, 3, normalizes_weights=False)
    assert chosen.tolist() == [[1, 2, 3], [0, 1, 2]]
    torch.testing.assert_close(weights, torch.tensor([[3 / 8, 2 / 8, 2 / 8], [1 / 4, 1 / 4, 1 / 4]]))


def test_weights_of_the_chosen_add_up_to_1_where_the_model_says_so() -> None:
    _, weights = choose_experts(LOGITS, 2, normalizes_weights=True)
    torch.testing.assert_close(weights, torch.tensor([[3 / 5, 2 / 5], [1 / 2, 1 / 2]]))


@torch.inference_mode()
def test_a_row_gets_the_weighted_sum_of_its_experts() -> None:
    experts, x = experts_of(6, 3), rows_of(9)
    chosen, weights = choose_experts(x @ experts.router.weight.T, 3, normalizes_weights=True)
    result = experts(x)
    for row in range(9):
        parts = [experts.experts[int(expert)](x[row : row + 1])[0] for expert in chosen[row]]
        expected = sum(weight * part for weight, part in zip(weights[row], parts, strict=True))
        torch.testing.assert_close(result[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("num_experts", "num_chosen"), [(8, 1), (6, 6), (60, 4)])
@torch.inference_mode()
def test_the_bits_of_a_row_do_not_depend_on_the_rows_that_share_its_experts(
    num_experts: int, num_chosen: int, dtype: torch.dtype
) -> None:
    experts, x = experts_of(num_experts, num_chosen, dtype), rows_of(12, dtype)
    together = experts(x)
    for row in range(12):
        assert torch.equal(experts(x[row : row + 1])[0], together[row])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(4))[:7]
    assert torch.equal(experts(x[order]), together[order])


@torch.inference_mode()
def test_an_expert_is_computed_once_for_all_its_rows_and_not_at_all_without() -> None:
    experts, x = experts_of(8, 2), rows_of(3)
    num_rows: dict[int, list[int]] = {expert: [] for expert in range(8)}

    def count(expert: int, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda _, inputs: num_rows[expert].append(len(inputs[0])))

    for expert, module in enumerate(experts.experts):
        count(expert, module)
    experts(x)
    chosen, _ = choose_experts(x @ experts.router.weight.T, 2, normalizes_weights=True)
    counts = chosen.flatten().bincount(minlength=8).tolist()
    assert 0 in counts
    assert [num_rows[expert] for expert in range(8)] == [[some] if some else [] for some in counts]


@torch.inference_mode()
def test_an_expert_of_gpt_oss_has_biases_and_clamps_both_factors() -> None:
    changes: dict[str, Any] = {"num_experts": 3, "num_chosen_experts": 2, "has_expert_bias": True, "num_layers": 1}
    model = tiny_llama(**changes, swiglu_limit=1.5, swiglu_alpha=1.702)
    experts, x = model.blocks()[0].feed_forward, 3 * rows_of(5)
    assert isinstance(experts, Experts)
    expert = experts.experts[1]
    assert isinstance(expert, FeedForward)
    gate, up = linear(x, expert.gate_up.weight, expert.gate_up.bias).double().chunk(2, dim=-1)
    assert gate.max() > 1.5
    assert gate.min() < -1.5
    assert up.abs().max() > 1.5
    gate, up = gate.clamp(max=1.5), up.clamp(-1.5, 1.5)
    inner = ((up + 1) * gate * torch.sigmoid(1.702 * gate)).float()
    torch.testing.assert_close(expert(x), linear(inner, expert.down.weight, expert.down.bias), atol=1e-4, rtol=1e-4)
    logits = linear(x, experts.router.weight, experts.router.bias)
    tops, chosen = logits.topk(2)
    expected = sum(
        weights.unsqueeze(-1)
        * torch.stack([experts.experts[int(i)](row.unsqueeze(0))[0] for i, row in zip(few, x, strict=True)])
        for weights, few in zip(tops.softmax(dim=-1).T, chosen.T, strict=True)
    )
    torch.testing.assert_close(experts(x), expected, atol=1e-4, rtol=1e-4)


def test_a_clamped_swiglu_is_rounded_once_and_stays_finite() -> None:
    gate, up = torch.tensor([-1e4, -3.0, 2.0, 1e4]).bfloat16(), torch.tensor([1.0, 9.0, -9.0, 0.3]).bfloat16()
    inner = clamped_swiglu(gate, up, 7.0, 1.702)
    wide = clamped_swiglu(gate.float(), up.float(), 7.0, 1.702)
    assert inner.dtype == torch.bfloat16
    assert torch.equal(inner, wide.bfloat16())
    assert wide[0] == 0
    assert wide[3] == pytest.approx(float(up[3] + 1) * 7, rel=1e-2)


@pytest.mark.parametrize("limits", [{"swiglu_limit": 0.0}, {"swiglu_alpha": -1.0}])
def test_the_limits_of_swiglu_are_positive(limits: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="The limit of SwiGLU and the factor in its sigmoid must be positive"):
        replace(TINY, **limits)


@pytest.mark.parametrize("num_chosen", [0, 5])
def test_a_number_of_chosen_experts_that_cannot_be_is_refused(num_chosen: int) -> None:
    with pytest.raises(UnsupportedModel, match=f"Each token has {num_chosen} of 4 experts"):
        ModelConfig(**{**vars(TINY), "num_experts": 4, "num_chosen_experts": num_chosen})
