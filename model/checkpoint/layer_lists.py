"""Which layers of a model differ from the others, as its files say; defaults are those of transformers."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.experts import GPT_OSS, MIXTRAL, QWEN3_MOE
from caravan.model.checkpoint.gguf_fields import GgufFields
from caravan.model.checkpoint.json_file import JsonFile
from caravan.model.config import UnsupportedModel

Windows = tuple[int | None, tuple[int, ...]]  # positions, None: all; and the layers that have no window all the same

_WITH_FLAG = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM")  # use_sliding_window
_INTERVALS: Mapping[str, int] = MappingProxyType(  # one layer in this number has no window
    {"Gemma2ForCausalLM": 2, "Gemma3ForCausalLM": 6, "Olmo3ForCausalLM": 4, GPT_OSS: 2}
    | {"gemma2": 2, "gemma3": 6, "olmo2": 4, "gpt-oss": 2}
)
_MAX_LAYERS = 10_000  # more are a damaged file; a tuple of them is made before its tensors are counted


def every_layer(interval: int, num_layers: int, path: Path, without: str) -> tuple[int, ...]:
    """Return each layer that ends a group of `interval`; `without` says in an error what these layers lack."""
    if interval < 1 or num_layers > _MAX_LAYERS:
        raise BrokenCheckpoint(f"{path} has {num_layers} layers, one in {interval} without {without}.")
    return tuple(range(interval - 1, num_layers, interval))


def sliding_windows(fields: JsonFile, architecture: str) -> Windows:
    """Return the windows that a config.json describes."""
    if architecture == "MistralForCausalLM":
        has_window = "sliding_window" in fields or "sliding_window" not in fields.raw()  # null: none
        return (fields.integer("sliding_window", 4096) if has_window else None), ()
    if architecture in ("Phi3ForCausalLM", "Ministral3ForCausalLM", MIXTRAL):
        return fields.integer("sliding_window", 0) or None, ()
    if architecture == QWEN3_MOE and fields.flag("use_sliding_window", False):
        return fields.integer("sliding_window", 4096), ()
    if architecture in _INTERVALS:
        interval = _INTERVALS[architecture]
        if architecture == "Gemma3ForCausalLM":
            interval = fields.integer("sliding_window_pattern", fields.integer("_sliding_window_pattern", interval))
        default = 128 if architecture == GPT_OSS else 4096
        return fields.integer("sliding_window", default), _full_layers(fields, interval)
    if architecture not in _WITH_FLAG or not fields.flag("use_sliding_window", False):
        return None, ()
    if architecture == "SmolLM3ForCausalLM":
        raise UnsupportedModel(f"{fields.path} has windows in its layers without RoPE, which are not supported.")
    num_full = min(fields.integer("max_window_layers", 28), fields.integer("num_hidden_layers"), _MAX_LAYERS)
    full_layers = _full_layers(fields, 1) if fields.items("layer_types") else tuple(range(num_full))
    return fields.integer("sliding_window", 4096), full_layers


def gguf_windows(fields: GgufFields, num_layers: int) -> Windows:
    """Return the windows that the metadata of a GGUF file describe. Source of the defaults: llama.cpp."""
    architecture, key = fields.architecture, "attention.sliding_window_pattern"
    window = fields.integer("attention.sliding_window", 4096 if architecture == "gemma2" else 0) or None
    if window is None or architecture not in _INTERVALS:
        return window, ()
    marks = fields.marks(key, num_layers)
    if marks is not None:
        return window, tuple(layer for layer, has_window in enumerate(marks) if not has_window)
    return window, every_layer(fields.integer(key, _INTERVALS[architecture]), num_layers, fields.path, "a window")


def _full_layers(fields: JsonFile, interval: int) -> tuple[int, ...]:
    """Return the layers that `layer_types` gives full attention, or each that ends a group of `interval`."""
    num_layers, kinds = fields.integer("num_hidden_layers"), fields.items("layer_types")
    if not kinds:
        return every_layer(interval, num_layers, fields.path, "a window")
    if len(kinds) != num_layers:
        raise BrokenCheckpoint(f"{fields.path}: layer_types has {len(kinds)} entries for {num_layers} layers.")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedModel(f"{fields.path} has layers of {ascii(kind)[:40]}, which are not supported.")
    return tuple(layer for layer, kind in enumerate(kinds) if kind == "full_attention")
