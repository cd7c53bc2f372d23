"""What a model knows of each position: rotations of queries and keys, and a scale of queries."""

import math

import torch
from torch import Tensor

from caravan.model.config import ModelConfig
from caravan.model.rope import rope_table


def position_tables(config: ModelConfig, max_position: int) -> dict[str, Tensor | None]:
    """Return the buffers of a model for positions below max_position, float32; None for those that it lacks.

    rope_cos and rope_sin are [max_position, head_dim / 2], window_rope_cos and window_rope_sin the same for layers with
    a window that rotate by other angles (Gemma 3, OLMo 3). query_scales, [max_position], multiply rotated queries.

    Attention divides q k by sqrt(head_dim). Another factor (attention_multiplier, Granite) is put into the rotations,
    its square root on the queries and on the keys.
    """
    head_dim, rotary_dim, window_theta = config.head_dim, config.rotary_dim, config.window_rope_theta
    cos, sin = rope_table(head_dim, max_position, config.rope_theta, config.rope_scaling, rotary_dim=rotary_dim)
    tables: dict[str, Tensor | None] = {"rope_cos": cos, "rope_sin": sin}
    if window_theta is not None:
        cos, sin = rope_table(head_dim, max_position, window_theta, rotary_dim=rotary_dim)
        tables |= {"window_rope_cos": cos, "window_rope_sin": sin}
    if config.attention_multiplier is not None:
        factor = math.sqrt(config.attention_multiplier * math.sqrt(head_dim))
        tables = {name: None if table is None else table * factor for name, table in tables.items()}
    scale, length = config.attention_temperature_scale, config.attention_temperature_length
    tables["query_scales"] = query_scales(max_position, scale, length) if scale else None
    return {"window_rope_cos": None, "window_rope_sin": None, **tables}


def query_scales(max_position: int, scale: float, length: int) -> Tensor:
    """Return what each query is multiplied by after its rotation, [max_position], float32.

    At position p that is 1 + scale ln(1 + floor(p / length)): the softmax of a long context stays as sharp as that of
    a short one. Source: Llama 4 (Meta, 2025), after Scalable-Softmax (arXiv:2501.19399).
    """
    chunk = torch.arange(max_position).div(length, rounding_mode="floor")
    return (1 + scale * torch.log1p(chunk.double())).float()
