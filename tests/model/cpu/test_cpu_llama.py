"""The model in kernels against the model in plain PyTorch, and every build of the kernels."""

from typing import Any

import pytest
import torch

from caravan.model.cpu.linear import Quantization
from caravan.model.cpu.llama import CpuLlama
from caravan.model.llama import Llama
from caravan.model.quantization import dequantize, from_bytes, quantize, to_bytes
from caravan.model.rope_scaling import YarnScaling
from tests.model.oracle import logits_of_every_position
from tests.support.tiny_llama import tiny_llama

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
        "num_full_layers": 1,
        "rope_scaling": YarnScaling(factor=4.0, original_max_position=32),
    },
}
PROMPT = torch.randint(0, 300, (90,), generator=torch.Generator().manual_seed(1)).tolist()


def error(model: Llama, exact: Llama) -> float:
    """Return how far the logits are off, in units of their own deviation."""
    expected = logits_of_every_position(exact, PROMPT)
    return float((logits_of_every_position(model, PROMPT) - expected).pow(2).mean().sqrt() / expected.std())


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_bfloat16_it_is_no_further_off_than_plain_pytorch(kernels: Any, variant: str) -> None:
    changes = VARIANTS[variant]
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
        if weight.dim() == 2 and name != "embedding.weight":
            rounded = from_bytes(to_bytes(weight)) if quantization == "int8" else dequantize(quantize(weight, 4))
            exact.place_weight(name, rounded)
    ours = tiny_llama(make_model=lambda config: CpuLlama(config, kernels, quantization), **changes)
    # int8 rounds what it multiplies, too
    assert error(ours, exact) < factor * error(tiny_llama(dtype=torch.bfloat16, **changes), tiny_llama(**changes))
