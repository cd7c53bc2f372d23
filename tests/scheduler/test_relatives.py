"""Relatives of Llama in an engine: no batch, preemption, cached prefix or draft token changes a bit of an answer."""

from typing import Any

import pytest

from caravan.model.rope_scaling import LinearScaling, YarnScaling
from caravan.scheduler.messages import StepStats
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import engine_of, model_in, random_prompt
from tests.support.tiny_llama import run_to_end

RELATIVES: dict[str, dict[str, Any]] = {
    "SmolLM3": {"num_layers": 3, "layers_without_rope": (0, 2)},
    "Granite": {"embedding_multiplier": 5.0, "attention_multiplier": 0.2, "logits_scaling": 0.5},
    "Phi-4": {"head_dim": 20, "rotary_dim": 12},
    "Ministral 3": {"attention_temperature_scale": 0.4, "attention_temperature_length": 24},
    "Gemma 2": {
        **{"embedding_multiplier": 1.5, "attention_multiplier": 0.2, "attention_soft_cap": 4.0, "logit_soft_cap": 6.0},
        **{"has_post_norm": True, "has_wide_norms": True, "has_geglu": True},
        **{"num_layers": 3, "sliding_window": 19, "full_layers": (1,)},
    },
    "Gemma 3": {
        **{"embedding_multiplier": 1.5, "has_post_norm": True, "has_wide_norms": True, "has_geglu": True},
        **{"has_query_key_norm": True, "window_rope_theta": 300.0, "rope_scaling": LinearScaling(factor=4.0)},
        **{"num_layers": 3, "sliding_window": 19, "full_layers": (2,)},
    },
    "OLMo 3": {
        **{"has_query_key_norm": True, "query_key_norm_spans_heads": True, "has_reordered_norm": True},
        **{"window_rope_theta": 10_000.0, "rope_scaling": YarnScaling(factor=4.0, original_max_position=32)},
        **{"num_layers": 3, "sliding_window": 19, "full_layers": (1,)},
    },
    "OLMo 2": {"has_query_key_norm": True, "query_key_norm_spans_heads": True, "has_reordered_norm": True},
    "gpt-oss": {
        **{"num_experts": 4, "num_chosen_experts": 2, "has_expert_bias": True, "swiglu_limit": 1.0},
        **{"swiglu_alpha": 1.702, "has_attention_sinks": True, "has_qkv_bias": True, "has_output_bias": True},
        **{"rope_scaling": YarnScaling(factor=4.0, original_max_position=32, truncates=False)},
        **{"sliding_window": 19, "full_layers": (1,)},
    },
    "Mixtral": {"num_experts": 6, "num_chosen_experts": 2},
    "OLMoE": {
        **{"num_experts": 8, "num_chosen_experts": 3, "normalizes_expert_weights": False},
        **{"has_query_key_norm": True, "query_key_norm_spans_heads": True},
    },
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[(name, "none, int8 pool") for name in ("SmolLM3", "Granite", "Phi-4", "Gemma 3", "OLMo 3")],
        *[(name, "none, int8 pool") for name in ("Mixtral", "OLMoE")],
        *[(name, "int8") for name in ("Ministral 3", "Gemma 2", "OLMo 2", "Mixtral")],
        *[(name, "float32 attention") for name in ("SmolLM3", "OLMo 3", "Ministral 3", "Gemma 3", "OLMoE")],
        *[(name, "bfloat16") for name in ("Granite", "OLMo 2")],
        ("Gemma 2", "float32"),
        *[("gpt-oss", kind) for kind in ("float32", "bfloat16, int8 pool")],
    ],
)
def test_answers_have_the_same_bits_in_company_and_alone(name: str, kind: str) -> None:
    model = model_in(kind, **RELATIVES[name])
    period = random_prompt(9, 5)
    params: dict[str, Any] = {"temperature": 1.0, "num_logprobs": 2, "max_tokens": 24}
    params["logit_bias"] = dict.fromkeys(period[:2], 30.0)  # nearly always one of two: draft tokens are right and wrong
    requests = [make_request(i, period * 7 + random_prompt(i, 3), seed=i, **params) for i in range(4)]
    limits: dict[str, Any] = {"block_size": 16, "max_model_len": 80, "max_batch_tokens": 29}
    stats: list[StepStats] = []
    crowded = engine_of(kind, model, num_blocks=7, speculation="on", **limits)
    together = run_to_end(crowded, requests, 0, lambda step: stats.append(step.stats))
    assert sum(step.num_preemptions for step in stats) > 0
    num_accepted = sum(step.num_accepted_tokens for step in stats)
    assert 0 < num_accepted < sum(step.num_draft_tokens for step in stats)
    assert any(transcript.num_cached_tokens for transcript in together.values())
    for request in requests:
        alone = run_to_end(engine_of(kind, model, **limits, speculation="off"), [request])
        assert together[request.request_id] == alone[request.request_id]
