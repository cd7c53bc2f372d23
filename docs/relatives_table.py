"""`python -m docs.relatives_table`: print the guide's table of what relatives of Llama have beyond it.

Which relative has what is read from one config.json for all of them, from which each architecture takes what it knows.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from caravan.model.checkpoint.huggingface import huggingface_config
from caravan.model.checkpoint.json_file import JsonFile
from caravan.model.checkpoint.relatives import RELATIVES, Relative
from caravan.model.config import ModelConfig
from caravan.model.rope_scaling import LongRopeScaling


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something that a relative has and Llama 2 has not."""

    words: str
    papers: tuple[str, ...] = ()  # numbers on arXiv
    flags: tuple[str, ...]  # fields of ModelConfig
    is_longrope: bool = False  # of those with the flag rope_scaling
    owner: str  # function or class with the line
    path: str  # of its file
    line: str  # a part of it

    def is_in(self, config: ModelConfig) -> bool:
        """Return whether the model has it."""
        if self.flags == ("rope_scaling",):
            is_longrope = isinstance(config.rope_scaling, LongRopeScaling)
            return config.rope_scaling is not None and is_longrope == self.is_longrope
        return any(getattr(config, flag) != _DEFAULTS[flag] for flag in self.flags)


_DEFAULTS: MappingProxyType[str, Any] = MappingProxyType({field.name: field.default for field in fields(ModelConfig)})
_MODEL, _ATTENTION = "model/llama.py", "model/attention/reference.py"
DIFFERENCES = (
    Difference(
        words="RoPE scaled for long texts",
        papers=("2306.15595", "2309.00071"),
        flags=("rope_scaling",),
        owner="scale_frequencies",
        path="model/rope_scaling.py",
        line="return frequencies * (share + (1 - share) / scaling.factor), 1.0",
    ),
    Difference(
        words="LongRoPE: two divisors for each frequency",
        papers=("2402.13753",),
        flags=("rope_scaling",),
        is_longrope=True,
        owner="scale_frequencies",
        path="model/rope_scaling.py",
        line="chosen = scaling.long_divisors if is_long else scaling.short_divisors",
    ),
    Difference(
        words="Part of a head rotates",
        papers=("2204.06745",),
        flags=("rotary_dim",),
        owner="rope_table",
        path="model/rope.py",
        line="return F.pad(cos, rest, value=1.0), F.pad(sin, rest)",
    ),
    Difference(
        words="Layers without RoPE",
        papers=("2305.19466", "2501.18795"),
        flags=("layers_without_rope",),
        owner="Attention",
        path=_MODEL,
        line="self.has_rope = layer not in config.layers_without_rope",
    ),
    Difference(
        words="A sliding window",
        papers=("2310.06825",),
        flags=("sliding_window",),
        owner="causal_attention",
        path=_ATTENTION,
        line="(distance >= window)",
    ),
    Difference(
        words="Layers with and without a window",
        papers=("2408.00118",),
        flags=("full_layers",),
        owner="ModelConfig.window",
        path="model/config.py",
        line="return None if layer in self.full_layers else self.sliding_window",
    ),
    Difference(
        words="Another RoPE in layers with a window",
        papers=("2503.19786",),
        flags=("window_rope_theta",),
        owner="Llama.run_layers",
        path=_MODEL,
        line="rope = (cos, sin) if layer.attention.window is None else window_rope",
    ),
    Difference(
        words="Biases in attention",
        papers=("2407.10671",),
        flags=("has_qkv_bias", "has_output_bias"),
        owner="Attention",
        path=_MODEL,
        line="Linear(config.hidden_size, num_qkv_rows, has_bias=config.has_qkv_bias)",
    ),
    Difference(
        words="A norm of each query and key",
        papers=("2505.09388",),
        flags=("has_query_key_norm",),
        owner="Attention.forward",
        path=_MODEL,
        line="queries, keys = self.query_norm(queries), self.key_norm(keys)",
    ),
    Difference(
        words="One norm over the queries of all heads, one over the keys",
        papers=("2501.00656",),
        flags=("query_key_norm_spans_heads",),
        owner="Attention.forward",
        path=_MODEL,
        line="queries = self.query_norm(queries.flatten(1)).view_as(queries)",
    ),
    Difference(
        words="Scores with another factor than 1 / sqrt(head_dim)",
        papers=("2203.03466",),
        flags=("attention_multiplier",),
        owner="position_tables",
        path="model/position_tables.py",
        line="factor = math.sqrt(config.attention_multiplier * math.sqrt(head_dim))",
    ),
    Difference(
        words="Queries that grow with their position",
        papers=("2501.19399",),
        flags=("attention_temperature_scale", "attention_temperature_length"),
        owner="Attention.forward",
        path=_MODEL,
        line="queries = (queries * query_scale.view(-1, 1, 1)).to(queries.dtype)",
    ),
    Difference(
        words="A soft cap of scores",
        papers=("2408.00118", "1611.09940"),
        flags=("attention_soft_cap",),
        owner="causal_attention",
        path=_ATTENTION,
        line="scores = soft_cap(scores, cap)",
    ),
    Difference(
        words="A soft cap of logits",
        papers=("2408.00118",),
        flags=("logit_soft_cap",),
        owner="Llama.whole_logits",
        path=_MODEL,
        line="return logits if cap is None else soft_cap(logits, cap)",
    ),
    Difference(
        words="Norms after attention and feed-forward instead of before",
        papers=("2501.00656",),
        flags=("has_reordered_norm",),
        owner="Block",
        path=_MODEL,
        line="x = x + self.attention_norm(self.attention(x, *inputs))",
    ),
    Difference(
        words="Norms before and after",
        papers=("2408.00118",),
        flags=("has_post_norm",),
        owner="Block",
        path=_MODEL,
        line="x = x + self.attention_post_norm(self.attention(self.attention_norm(x), *inputs))",
    ),
    Difference(
        words="Weights of norms in float32 ([decision 0088](decisions/0088-norms-and-caps.md))",
        flags=("has_wide_norms",),
        owner="ModelConfig.is_wide",
        path="model/config.py",
        line='return self.has_wide_norms and weight.endswith("norm.weight")',
    ),
    Difference(
        words="GEGLU: GELU instead of SiLU",
        papers=("2002.05202", "1606.08415"),
        flags=("has_geglu",),
        owner="FeedForward",
        path="model/feed_forward.py",
        line="self.activation = gelu if config.has_geglu else silu",
    ),
    Difference(
        words="Experts",
        papers=("2401.04088",),
        flags=("num_experts", "num_chosen_experts", "normalizes_expert_weights"),
        owner="Block",
        path=_MODEL,
        line="Experts(config) if config.num_experts else FeedForward(config)",
    ),
    Difference(
        words="A sink for each head, a score without a value",
        papers=("2309.17453", "2508.10925"),
        flags=("has_attention_sinks",),
        owner="causal_attention",
        path=_ATTENTION,
        line="total = total + torch.exp(sinks - largest).squeeze(-1)",
    ),
    Difference(
        words="Biases in experts and their router",
        papers=("2508.10925",),
        flags=("has_expert_bias",),
        owner="FeedForward",
        path="model/feed_forward.py",
        line="self.down = Linear(config.intermediate_size, config.hidden_size, has_bias=has_bias)",
    ),
    Difference(
        words="SwiGLU with clamped factors",
        papers=("2508.10925",),
        flags=("swiglu_limit", "swiglu_alpha"),
        owner="clamped_swiglu",
        path="model/clamped_swiglu.py",
        line="wide = gate.float().clamp(max=limit)",
    ),
    Difference(
        words="A factor of embeddings",
        papers=("1706.03762", "2203.03466"),
        flags=("embedding_multiplier",),
        owner="Llama.embed",
        path=_MODEL,
        line="return x if multiplier == 1 else x * multiplier",
    ),
    Difference(
        words="A factor of what each part adds, put into that of the embeddings and into eps",
        papers=("2203.03466",),
        flags=("rms_norm_eps",),
        owner="_granite",
        path="model/checkpoint/relatives.py",
        line='"rms_norm_eps": eps / residual**2',
    ),
    Difference(
        words="Logits divided by a factor",
        papers=("2203.03466",),
        flags=("logits_scaling",),
        owner="Llama.whole_logits",
        path=_MODEL,
        line="logits = logits if scaling == 1 else logits / scaling",
    ),
)
_EVERYTHING: MappingProxyType[str, Any] = MappingProxyType(
    {
        **{"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5},
        **{"max_position_embeddings": 131_072, "sliding_window": 4096, "use_sliding_window": True},
        **{"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.0078125},
        **{"logits_scaling": 16.0, "query_pre_attn_scalar": 144, "tie_word_embeddings": False},
        "rope_scaling": {
            **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 8192,
        },
    }
)
_OWN: MappingProxyType[str, dict[str, Any]] = MappingProxyType(  # what one takes in another form, or others refuse
    {
        "Ministral3ForCausalLM": {
            "rope_scaling": None,
            "rope_parameters": {
                **{"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16_384},
                "llama_4_scaling_beta": 0.1,
            },
        },
        "SmolLM3ForCausalLM": {"use_sliding_window": False},
        "GraniteMoeHybridForCausalLM": {
            **{"num_local_experts": 0, "layer_types": ["attention"] * 32, "position_embedding_type": "rope"},
        },
        "Phi3ForCausalLM": {
            "partial_rotary_factor": 0.75,
            "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
        },
        "Qwen3MoeForCausalLM": {"norm_topk_prob": True},
    }
)


def config_with_everything(relative: Relative) -> ModelConfig:
    """Return what an architecture makes of a config.json that has all that it knows."""
    everything = JsonFile(Path("config.json"), {**_EVERYTHING, **_OWN.get(relative.class_name, {})})
    return huggingface_config(everything, relative.class_name, has_output=True)


def table() -> str:
    """Return the table, in Markdown."""
    configs = {relative.title: config_with_everything(relative) for relative in RELATIVES}
    rows = [("beyond Llama 2", "in", "where"), ("---",) * 3]
    for difference in DIFFERENCES:
        flags = ", ".join(f"`{flag}`" for flag in difference.flags)
        papers = "".join(f", [arXiv:{number}](https://arxiv.org/abs/{number})" for number in difference.papers)
        place = f"`{difference.owner}` in [{difference.path}](../{difference.path}): `{difference.line}`"
        rows.append((f"{difference.words}: {flags}{papers}", _titles(difference, configs), place))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _titles(difference: Difference, configs: dict[str, ModelConfig]) -> str:
    """Return the relatives that have it; of more than half of them, those that do not."""
    having = [title for title, config in configs.items() if difference.is_in(config)]
    if 2 * len(having) <= len(configs):
        return "; ".join(having)
    return "all but " + "; ".join(title for title in configs if title not in having)


if __name__ == "__main__":
    print(table())
