"""Random models as transformers has and writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

NUM_TOKENS = 90  # longer than the windows and the original lengths below


TINY: Mapping[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 32}


MINISTRAL3 = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


GRANITE = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.25,
    "logits_scaling": 0.5,
}


GRANITE_4 = {
    "num_local_experts": 0,
    "layer_types": ["attention"] * 3,
    "position_embedding_type": "rope",
    "shared_intermediate_size": 72,
    "mamba_n_heads": 4,
}


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 2.0, 3.0, 4.0],
}
PHI_4_MINI = {"hidden_size": 64, "rope_parameters": LONGROPE, "original_max_position_embeddings": 32}
PARTLY = {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.75}


GEMMA = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 17,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
    "tie_word_embeddings": True,
}


GEMMA_3 = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 17,
    "num_hidden_layers": 7,
    "tie_word_embeddings": True,
}
GEMMA_3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}
OLMO_3_ROPE = {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0}}
MIXTRAL = {"num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
QWEN3_MOE = {
    "num_hidden_layers": 2,
    "head_dim": 12,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
}
GPT_OSS = {
    **{"num_hidden_layers": 3, "head_dim": 16, "sliding_window": 17, "num_local_experts": 6, "num_experts_per_tok": 3},
    **{"rope_parameters": YARN | {"truncate": False}, "swiglu_limit": 0.7},
}
OLMOE = {"num_hidden_layers": 2, "num_experts": 8, "num_experts_per_tok": 3}


VARIANTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mha": ("Llama", {"num_key_value_heads": 4}),
    "mqa": ("Llama", {"num_key_value_heads": 1}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "head size": ("Llama", {"head_dim": 20}),
    "attention bias": ("Llama", {"attention_bias": True}),
    "theta": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 200.0}}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0}}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "yarn": ("Llama", {"rope_parameters": YARN}),
    "yarn with factor": ("Llama", {"rope_parameters": YARN | {"attention_factor": 1.3, "beta_fast": 16.0}}),
    "yarn with mscale": ("Llama", {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.0}}),
    "yarn unrounded": ("Llama", {"rope_parameters": YARN | {"truncate": False}}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral window": ("Mistral", {"sliding_window": 17, "head_dim": 16}),
    "ministral3": ("Ministral3", {"rope_parameters": MINISTRAL3, "head_dim": 16}),
    "ministral3 window": ("Ministral3", {"rope_parameters": MINISTRAL3, "sliding_window": 23}),
    "qwen2": ("Qwen2", {}),
    "qwen2 window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "qwen3 tied": ("Qwen3", {"head_dim": 12, "tie_word_embeddings": True, "attention_bias": True}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5}),
    "smollm3 list": ("SmolLM3", {"no_rope_layers": [0, 1, 0], "tie_word_embeddings": True}),
    "granite": ("Granite", GRANITE),
    "granite 4": ("GraniteMoeHybrid", GRANITE | GRANITE_4),
    "olmo2": ("Olmo2", {}),
    "gemma2": ("Gemma2", GEMMA),
    "gemma2 untied": ("Gemma2", GEMMA | {"query_pre_attn_scalar": 30, "tie_word_embeddings": False}),
    "gemma2 without caps": ("Gemma2", GEMMA | {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma2 list": ("Gemma2", GEMMA | {"layer_types": ["full_attention", *["sliding_attention"] * 2]}),
    "gemma3": ("Gemma3", GEMMA_3),
    "gemma3 linear": ("Gemma3", GEMMA_3 | {"query_pre_attn_scalar": 30, "rope_parameters": GEMMA_3_ROPE}),
    "gemma3 with cap": ("Gemma3", GEMMA_3 | {"final_logit_softcapping": 3.0, "tie_word_embeddings": False}),
    "olmo3": ("Olmo3", {"num_hidden_layers": 5, "sliding_window": 17}),
    "olmo3 yarn": ("Olmo3", {"num_hidden_layers": 5, "sliding_window": 17, "rope_parameters": OLMO_3_ROPE}),
    "phi3": ("Phi3", {"sliding_window": 17}),
    "phi4 mini": ("Phi3", {"hidden_size": 64, "rope_parameters": PARTLY, "tie_word_embeddings": True}),
    "longrope": ("Phi3", PHI_4_MINI),
    "mixtral": ("Mixtral", MIXTRAL),
    "mixtral window": ("Mixtral", MIXTRAL | {"sliding_window": 17}),
    "qwen3 moe": ("Qwen3Moe", QWEN3_MOE),
    "qwen3 moe normalised": ("Qwen3Moe", QWEN3_MOE | {"norm_topk_prob": True, "tie_word_embeddings": True}),
    "qwen3 moe window": ("Qwen3Moe", QWEN3_MOE | {"use_sliding_window": True, "sliding_window": 20}),
    "olmoe": ("Olmoe", OLMOE),
    "olmoe normalised": ("Olmoe", OLMOE | {"norm_topk_prob": True}),
    "gpt-oss": ("GptOss", GPT_OSS),
    "gpt-oss list": ("GptOss", GPT_OSS | {"layer_types": ["full_attention", *["sliding_attention"] * 2]}),
    "gpt-oss without biases": ("GptOss", GPT_OSS | {"attention_bias": False, "tie_word_embeddings": True}),
}


_CONFIGS = {"Gemma3": "Gemma3Text"}


def random_model(kind: str, **changes: Any) -> Any:
    """Return a random model of transformers; all of its parameters matter and no choice is close."""
    config = getattr(transformers, f"{_CONFIGS.get(kind, kind)}Config")(**{**TINY, **changes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif parameter.dim() == 1:  # Gemma's norms multiply by 1 more than their weights
                parameter.copy_(0.1 * noise if kind.startswith("Gemma") else 1 + 0.1 * noise)
            else:
                parameter.copy_(noise * 2 / parameter.shape[-1] ** 0.5)
    return model


def random_tokens(count: int = NUM_TOKENS) -> list[int]:
    tokens: list[int] = torch.randint(0, 300, (count,), generator=torch.Generator().manual_seed(1)).tolist()
    return tokens


def expected_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def edit(path: Path, **changes: Any) -> None:
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value != "remove"}))
