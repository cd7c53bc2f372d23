"""Gemma: what Gemma 2 (arXiv:2408.00118) and 3 (arXiv:2503.19786) have beyond Llama, and how their files say so."""

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from caravan.model.checkpoint.json_file import JsonFile
from caravan.model.config import UnsupportedModel

ReadNumber = Callable[[str, float], float]

_ATTENTION_CAP, _LOGIT_CAP = 50.0, 30.0  # of Gemma 2
_NUM_LAYERS_OF_27B = MappingProxyType({"gemma2": 46, "gemma3": 62})  # a GGUF file does not state their factor of scores


def gemma_flags(architecture: str, fields: JsonFile) -> dict[str, Any]:
    """Return the fields of ModelConfig that a config.json describes. Source of the defaults: transformers."""
    if fields.flag("use_bidirectional_attention", False):
        raise UnsupportedModel(f"{fields.path} has attention to later tokens, which is not supported.")
    hidden_size, head_dim = fields.integer("hidden_size"), fields.integer("head_dim", 256)
    scalar = fields.number("query_pre_attn_scalar", 256)
    if architecture == "Gemma2ForCausalLM":
        caps = (
            _cap(fields, "attn_logit_softcapping", _ATTENTION_CAP),
            _cap(fields, "final_logit_softcapping", _LOGIT_CAP),
        )
        return _flags(hidden_size, head_dim, scalar, caps, str(fields.path))
    if "attn_logit_softcapping" in fields:
        raise UnsupportedModel(f"{fields.path} has a soft cap of scores, which Gemma 3 cannot have.")
    caps = None, _cap(fields, "final_logit_softcapping", None)
    return _flags(hidden_size, head_dim, scalar, caps, str(fields.path)) | {"has_query_key_norm": True}


def gemma_gguf_flags(architecture: str, path: str, number: ReadNumber) -> dict[str, Any]:
    """Return the same from the metadata of a GGUF file. Source of the defaults: llama.cpp."""
    hidden_size, num_heads = number("embedding_length", 0), max(number("attention.head_count", 1), 1)
    head_dim = int(number("attention.key_length", hidden_size // num_heads))
    is_27b = number("block_count", 0) == _NUM_LAYERS_OF_27B[architecture]
    scalar: float = hidden_size // num_heads if is_27b else head_dim
    if scale := number("attention.scale", 0):
        scalar = scale**-2
    is_gemma_2 = architecture == "gemma2"
    caps = (
        number("attn_logit_softcapping", _ATTENTION_CAP if is_gemma_2 else 0) or None,
        number("final_logit_softcapping", _LOGIT_CAP if is_gemma_2 else 0) or None,
    )
    return _flags(int(hidden_size), head_dim, scalar, caps, path)


def _flags(
    hidden_size: int, head_dim: int, scalar: float, caps: tuple[float | None, float | None], path: str
) -> dict[str, Any]:
    """Return the flags; scores are divided by the root of `scalar`."""
    if not scalar > 0:
        raise UnsupportedModel(f"{path}: the factor of scores must be positive.")
    attention_cap, logit_cap = caps
    return {
        "embedding_multiplier": math.sqrt(max(hidden_size, 0)),
        "attention_multiplier": None if scalar == head_dim else scalar**-0.5,
        "attention_soft_cap": attention_cap,
        "logit_soft_cap": logit_cap,
        "has_post_norm": True,
        "has_wide_norms": True,
        "has_geglu": True,
    }


def _cap(fields: JsonFile, key: str, default: float | None) -> float | None:
    """Return a soft cap; null, unlike a missing field, is none."""
    return default if key not in fields.raw() else fields.number(key) if key in fields else None
