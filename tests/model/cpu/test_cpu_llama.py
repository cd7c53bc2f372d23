"""The model in kernels against the model in plain PyTorch, and every build of the kernels."""

from typing import Any

import pytest
import torch

from caravan.model.cpu.linear import Quantization
from caravan.model.cpu.llama import ROUTER_WEIGHT, CpuLlama
from caravan.model.llama import Llama
from caravan.model.quantization import dequantize, from_bytes, quantize, to_bytes
from caravan.model.rope_scaling import LinearScaling, YarnScaling
from tests.model.oracle import logits_of_every_position
from tests.support.tiny_llama import tiny_llama

UNSCALED = "experts whose weights do not add up to 1"
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "multi-head": {"num_kv_heads": 4},
    "multi-query": {"num_kv_heads": 1},
    "untied": {"tie_embeddings": False},
    "all relatives": {
        "has_qkv_bias": True,
        "has_output_bias": True,
        "has_query_key_norm": True,
        "sliding_window": 19,
        "full_layers": (0,),
        "rope_scaling": YarnScaling(factor=4.0, original_max_position=32),
    },
    "layers without RoPE": {"num_layers": 4, "layers_without_rope": (0, 3)},
    "factors": {"embedding_multiplier": 5.0, "attention_multiplier": 0.2, "logits_scaling": 3.0},
    "queries scaled": {"attention_temperature_scale": 0.4, "attention_temperature_length": 24},
    "norms after": {"has_reordered_norm": True, "has_query_key_norm": True, "query_key_norm_spans_heads": True},
    "norms before and after": {"has_post_norm": True, "has_wide_norms": True, "has_geglu": True},
    "soft caps": {"attention_soft_cap": 4.0, "logit_soft_cap": 6.0},
    "two kinds of RoPE": {
        **{"has_query_key_norm": True, "has_wide_norms": True, "rope_scaling": LinearScaling(factor=4.0)},
        **{"num_layers": 4, "sliding_window": 19, "full_layers": (2,), "window_rope_theta": 300.0},
    },
    "partly rotated": {"head_dim": 20, "rotary_dim": 12},
    "experts": {"num_experts": 6, "num_chosen_experts": 2},
    UNSCALED: {
        **{"num_experts": 8, "num_chosen_experts": 3, "normalizes_expert_weights": False, "has_query_key_norm": True}
    },
}
PROMPT = torch.randint(0, 300, (90,), generator=torch.Generator().manual_seed(1)).tolist()


def error(model: Llama, exact: Llama) -> float:
    """Return how far the logits are off, in units of their own deviation."""
    expected = logits_of_every_position(exact, PROMPT)
    return float((logits_of_every_position(model, PROMPT) - expected).pow(2).mean().sqrt() / expected.std())


@pytest.mark.parametrize("variant", [*VARIANTS, "OLMoE"])
def test_in_bfloat16_it_is_no_further_off_than_plain_pytorch(kernels: Any, variant: str) -> None:
    changes = VARIANTS.get(variant) or VARIANTS[UNSCALED] | {"query_key_norm_spans_heads": True}
    exact = tiny_llama(**changes)
    ours = tiny_llama(make_model=lambda config: CpuLlama(config, kernels, "none"), **changes)
    assert error(ours, exact) < 1.1 * error(tiny_llama(dtype=torch.bfloat16, **changes), exact)


@pytest.mark.slow
@pytest.mark.parametrize(("quantization", "factor"), [("int8", 2.5), ("int4", 1.1)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_quantized_model_is_the_one_with_the_rounded_weights(
    kernels: Any, variant: str, quantization: Quantization, factor: float
) -> None:
    changes = VARIANTS[variant] | {"tie_embeddings": False}  # a tied one is rounded as output head only
    exact = tiny_llama(**changes)
    for name, weight in list(exact.named_parameters()):
        if weight.dim() == 2 and name != "embedding.weight" and not name.endswith(ROUTER_WEIGHT):
            rounded = from_bytes(to_bytes(weight)) if quantization == "int8" else dequantize(quantize(weight, 4))
            exact.place_weight(name, rounded)
    ours = tiny_llama(make_model=lambda config: CpuLlama(config, kernels, quantization), **changes)
    # int8 rounds what it multiplies, too
    assert error(ours, exact) < factor * error(tiny_llama(dtype=torch.bfloat16, **changes), tiny_llama(**changes))
