"""Tensors in files that have several matrices of a layer, one after the other."""

from collections.abc import Mapping

from caravan.model.config import ModelConfig


def first_rows(config: ModelConfig) -> dict[str, int]:
    """Return where K, V and the up projection begin where Q, K and V are one matrix, and gate and up projection."""
    num_q_rows, num_kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {"k": num_q_rows, "v": num_q_rows + num_kv_rows, "up": config.intermediate_size}


def first_rows_in_fused(config: ModelConfig, names: Mapping[str, str]) -> dict[str, int]:
    """Return the same for those whose tensor in the files, by its name there, begins with another matrix."""
    before = {"k": "q", "v": "q", "up": "gate"}
    return {word: row for word, row in first_rows(config).items() if names[word] == names[before[word]]}
