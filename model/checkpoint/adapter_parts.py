"""The matrices of an adapter as parts of a model's linear layers."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from caravan.model.checkpoint.adapter_sites import AdapterSite, adapter_sites
from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.checkpoint.fused_tensors import first_rows
from caravan.model.checkpoint.peft import Adapter
from caravan.model.checkpoint.row_order import rotated_first
from caravan.model.config import ModelConfig
from caravan.model.lora import AdapterPart, LinearName

_LINEARS: Mapping[str, LinearName] = MappingProxyType(  # that have the outputs of a word of TensorNames
    {
        **{"q": "qkv", "k": "qkv", "v": "qkv", "attention_output": "output"},
        **{"gate": "gate_up", "up": "gate_up", "down": "down"},
    }
)


def adapter_parts(checkpoint: Checkpoint, adapter: Adapter) -> list[AdapterPart]:
    """Return the matrices of an adapter, with outputs in the order of the model.

    Raises OSError, BrokenCheckpoint or UnsupportedModel.
    """
    parts = []
    for module, site in adapter_sites(checkpoint, adapter).items():
        linear, first = _LINEARS[site.word], first_rows(checkpoint.config).get(site.word, 0)
        a, b = adapter.factors(module)
        b, scale = _in_order(checkpoint.config, site, b).contiguous(), adapter.config.scale_of(module)
        parts.append(AdapterPart(layer=site.layer, linear=linear, first=first, scale=scale, a=a, b=b))
    return parts


def _in_order(config: ModelConfig, site: AdapterSite, b: Tensor) -> Tensor:
    """Return the rows of B [out, rank] in the order of the model, which is PEFT's but for heads that rotate in part."""
    if config.rotary_dim is None or site.word not in ("q", "k"):
        return b
    if not site.is_fused:
        return rotated_first(b, config.num_heads if site.word == "q" else config.num_kv_heads, config.rotary_dim)
    first = first_rows(config)
    q, k, v = b[: first["k"]], b[first["k"] : first["v"]], b[first["v"] :]
    q, k = (
        rotated_first(rows.contiguous(), heads, config.rotary_dim)
        for rows, heads in ((q, config.num_heads), (k, config.num_kv_heads))
    )
    return torch.cat((q, k, v))
