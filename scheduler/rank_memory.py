"""The memory of each rank of a model."""

import torch

from caravan.model.config import ModelConfig
from caravan.model.kv_cache import kv_bytes_per_token
from caravan.model.share import Share


def check_rank_device(num_ranks: int, device: torch.device, num_joining_ranks: int = 0) -> None:
    """Raise ValueError for several ranks on GPUs, unless each is on another host with a GPU of its own.

    Such ranks gather through NCCL. They have never been run.
    """
    if device.type != "cpu" and num_ranks > 1 + num_joining_ranks:
        raise ValueError(
            "--tensor-parallel divides a model between processes on CPUs; on GPUs it is not built, except with "
            "--remote-ranks for all processes but the first. Remove it, or set --device cpu."
        )


def rank_token_bytes(config: ModelConfig, dtype: torch.dtype, num_ranks: int, draft_bytes: int = 0) -> list[int]:
    """Return the bytes of a token in the KV pool of each rank.

    The first rank has the draft model, with draft_bytes for a token. With more ranks than KV heads, several ranks have
    the same head.
    """
    own = [kv_bytes_per_token(share.cache_config(config), dtype) for share in Share(0, num_ranks).all()]
    return [own[0] + draft_bytes, *own[1:]]


def usable_bytes(hosts: list[tuple[int, list[int]]], token_bytes: list[int]) -> int:
    """Return how much of the free memory of some hosts the KV pools of all ranks can take together.

    `hosts` has the free memory of each host and its ranks. Each rank has an equal part of the memory of its host, and
    all pools have the same number of blocks. So the rank with the most bytes for a token, or the least memory, sets
    that number, and the others leave some of their parts free.
    """
    return min(
        free_bytes * sum(token_bytes) // (len(ranks) * max(token_bytes[rank] for rank in ranks))
        for free_bytes, ranks in hosts
    )
