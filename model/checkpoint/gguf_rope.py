"""Rotary embeddings as the metadata of GGUF files describe them."""

import math
from collections.abc import Mapping

from caravan.model.checkpoint.gguf_factors import LONG_FACTORS, ROPE_FREQS, SHORT_FACTORS
from caravan.model.checkpoint.gguf_fields import GgufFields
from caravan.model.rope_scaling import DivisorScaling, LinearScaling, LongRopeScaling, RopeScaling, YarnScaling


def gguf_rope_scaling(
    fields: GgufFields, divisors: Mapping[str, tuple[float, ...]], rotary_dim: int, max_position: int
) -> RopeScaling | None:
    """Return the scaling; `divisors` are those of the file by their tensors."""
    kind = fields.text("rope.scaling.type", "none")
    for name, numbers in divisors.items():
        if len(numbers) != rotary_dim // 2 or min(numbers) <= 0:
            raise fields.broken(f"{name} must have {rotary_dim // 2} positive numbers")
    if divisors.keys() == {LONG_FACTORS, SHORT_FACTORS} and fields.architecture == "phi3":
        return LongRopeScaling(
            short_divisors=divisors[SHORT_FACTORS],
            long_divisors=divisors[LONG_FACTORS],
            original_max_position=fields.integer("rope.scaling.original_context_length", max_position),
            attention_factor=fields.number("rope.scaling.attn_factor", 1.0),
        )
    if divisors.keys() - {ROPE_FREQS}:
        raise fields.unsupported("has divisors of LongRoPE, which are supported for phi3, and in pairs, only")
    if divisors and kind != "none":
        raise fields.unsupported(f"has {ROPE_FREQS} and scales its rotary embeddings by {ascii(kind)[:40]}, too")
    if divisors:
        return DivisorScaling(divisors=divisors[ROPE_FREQS])
    factor = fields.number("rope.scaling.factor", 1.0)
    if factor <= 0:
        raise fields.broken(f"rope.scaling.factor is {factor}; it must be positive")
    match kind:
        case "none":
            return None
        case "linear":
            return LinearScaling(factor=factor)
        case "yarn":
            multiplier = fields.number("rope.scaling.yarn_log_multiplier", 0.0)  # mscale_all_dim, where mscale is 1
            if fields.number("rope.scaling.yarn_ext_factor", 1.0) != 1.0 or multiplier < 0:
                raise fields.unsupported("uses a form of YaRN that is not supported")
            logarithm = 0.1 * math.log(max(factor, 1.0))
            attention = fields.number("rope.scaling.attn_factor", 1.0)
            attention *= fields.number("rope.scaling.yarn_attn_factor", 1.0)
            return YarnScaling(
                factor=factor,
                original_max_position=fields.integer("rope.scaling.original_context_length", max_position),
                beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
                beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
                attention_factor=attention * (logarithm + 1) / (multiplier * logarithm + 1),
                truncates=fields.architecture != "gpt-oss",  # no field says it
            )
    raise fields.unsupported(f"scales its rotary embeddings by {ascii(kind)[:40]}; supported are linear and yarn")


def window_rope_theta(fields: GgufFields, theta: float) -> float | None:
    """Return the base of the rotary embeddings of layers with a window; None: `theta`, and all are scaled alike."""
    match fields.architecture:
        case "gemma3":
            return fields.number("rope.freq_base_swa", 10_000.0)
        case "olmo2":  # OLMo 3
            return fields.number("rope.freq_base_swa", theta)
    return None
