"""Rotary embeddings as config.json describes them."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.json_file import JsonFile, log_disagreement
from caravan.model.config import UnsupportedModel
from caravan.model.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)

GPT_OSS_ROPE: Mapping[str, Any] = MappingProxyType(  # where config.json has none
    {
        **{"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0},
        **{"truncate": False, "original_max_position_embeddings": 4096},
    }
)


def rope_fields(fields: JsonFile) -> JsonFile | None:
    """Return the rotary parameters: the older rope_scaling replaces rope_parameters as a whole.

    Where layers with a window have their own, these are those of the others; here rope_scaling adds to them.
    """
    newer, older = fields.part("rope_parameters"), fields.part("rope_scaling")
    if newer is not None and (of_others := newer.part("full_attention")) is not None:
        return JsonFile(fields.path, of_others.raw() | ({} if older is None else older.raw()))
    if older is not None and older.raw() and newer is not None and newer.raw() != older.raw():
        log_disagreement(f"rope_scaling in {fields.path}", older.raw(), "rope_parameters there", newer.raw())
    chosen = older if older is not None and older.raw() else newer
    if chosen is not None and "rope_theta" in chosen and "rope_theta" in fields:
        theta, other = chosen.number("rope_theta"), fields.number("rope_theta")
        if theta != other:
            log_disagreement(f"rope_theta among the RoPE parameters of {fields.path}", theta, "that beside them", other)
    return chosen


def window_rope_theta(fields: JsonFile, architecture: str) -> float | None:
    """Return the base of the rotary embeddings of layers with a window; None: that of the others."""
    if architecture not in ("Gemma3ForCausalLM", "Olmo3ForCausalLM"):
        return None
    all_parameters = fields.part("rope_parameters")
    parameters = None if all_parameters is None else all_parameters.part("sliding_attention")
    if parameters is not None:
        if (kind := parameters.text("rope_type", "default")) != "default":
            raise UnsupportedModel(f"{fields.path} scales RoPE in layers with a window by {ascii(kind)[:40]}.")
        if "rope_theta" in parameters:
            return parameters.number("rope_theta")
    if architecture == "Gemma3ForCausalLM":
        return fields.number("rope_local_base_freq", 10_000.0)
    return fields.number("rope_theta", 500_000.0)


def rotary_dim(fields: JsonFile, rope: JsonFile | None, architecture: str, head_dim: int) -> int | None:
    """Return how many dimensions of a head rotate; None: all."""
    holder = rope if rope is not None and "partial_rotary_factor" in rope else fields
    factor = holder.number("partial_rotary_factor", 1.0)
    if not 0 < factor <= 1:
        raise BrokenCheckpoint(f"{fields.path}: partial_rotary_factor is {factor:g}; it must be from 0 to 1.")
    rotated = int(head_dim * factor)
    if rotated == head_dim:
        return None
    if architecture != "Phi3ForCausalLM":
        raise UnsupportedModel(f"{fields.path} rotates only a part of each head, which is not supported.")
    return rotated


def rope_scaling(fields: JsonFile, rope: JsonFile | None, architecture: str) -> tuple[RopeScaling | None, int]:
    """Return the scaling and its maximum context, in tokens."""
    max_position = fields.integer("max_position_embeddings")
    if rope is None:
        return None, max_position
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return None, max_position
    if architecture == "Phi3ForCausalLM":
        return _longrope(fields, rope, kind, max_position), max_position
    original = rope.integer("original_max_position_embeddings", max_position)
    factor = rope.number("factor", max_position / max(original, 1))
    if factor <= 0 or original < 1:
        raise BrokenCheckpoint(f"{rope.path}: the factor and original length of a RoPE scaling must be positive.")
    longest = max(max_position, int(original * factor))
    match kind:
        case "linear":
            return LinearScaling(factor=factor), max_position
        case "dynamic":
            return DynamicScaling(factor=factor, original_max_position=max_position), int(max_position * factor)
        case "llama3":
            low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
            if not 0 < low < high:
                raise BrokenCheckpoint(f"{rope.path}: low_freq_factor must be positive and below high_freq_factor.")
            scaling = Llama3Scaling(
                factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_position=original
            )
            return scaling, max_position
        case "yarn":
            return _yarn(rope, factor, original), longest
    raise UnsupportedModel(
        f"{rope.path} scales its rotary embeddings by {ascii(kind)[:40]}; supported are linear, dynamic, llama3, yarn."
    )


def _yarn(rope: JsonFile, factor: float, original: int) -> YarnScaling:
    attention: float | None = None
    if "attention_factor" in rope:
        attention = rope.number("attention_factor")
    elif "mscale" in rope and "mscale_all_dim" in rope and rope.number("mscale_all_dim"):
        logarithm = 0.1 * math.log(max(factor, 1.0))
        attention = (rope.number("mscale") * logarithm + 1) / (rope.number("mscale_all_dim") * logarithm + 1)
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        attention_factor=attention,
        truncates=rope.flag("truncate", True),
    )


def _longrope(fields: JsonFile, rope: JsonFile, kind: str, max_position: int) -> LongRopeScaling:
    """Return the scaling of Phi-3 and Phi-4, which had other names before that of its paper."""
    if kind not in ("longrope", "su", "yarn"):
        raise UnsupportedModel(
            f"{rope.path} scales its rotary embeddings by {ascii(kind)[:40]}; supported for Phi-3 is longrope."
        )
    original = fields.integer("original_max_position_embeddings", 4096)
    factor = rope.number("factor", max_position / max(original, 1))
    if original < 2 or factor <= 0:
        raise BrokenCheckpoint(f"{rope.path}: the factor and original length of a RoPE scaling must be positive.")
    default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongRopeScaling(
        short_divisors=_divisors(rope, "short_factor"),
        long_divisors=_divisors(rope, "long_factor"),
        original_max_position=original,
        attention_factor=rope.number("attention_factor", default),
    )


def _divisors(rope: JsonFile, key: str) -> tuple[float, ...]:
    numbers = rope.items(key)
    if not numbers or not all(type(number) in (int, float) and 0 < number < math.inf for number in numbers):
        raise BrokenCheckpoint(f"{rope.path}: {key} must be a list of positive numbers.")
    return tuple(map(float, numbers))
