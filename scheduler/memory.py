"""Free memory for the KV pool, and what a step needs beside it."""

import ctypes
import re
from pathlib import Path

import psutil
import torch

from caravan.model.config import ModelConfig

FLOATS_PER_LOGIT = 6  # the logit itself and what the sampler keeps
LIBRARY_BYTES = 2**29  # of libraries, loaded kernels and CUDA graphs


def free_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup"), *, mapped_bytes: int = 0) -> int:
    """Return the bytes that can still be allocated: free on the machine, or less under a container's limit.

    The memory use of a container includes files that it has read, such as the model; the kernel can reclaim them. It
    could also reclaim the mapped_bytes of packed weights, but every step reads them, so they count as used.
    """
    free = int(psutil.virtual_memory().available) - mapped_bytes
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        reclaimable = re.search(r"^inactive_file (\d+)$", (cgroup / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no control group, or no limit in it ("max")
        return max(0, free)
    other_files = max(0, (int(reclaimable[1]) if reclaimable else 0) - mapped_bytes)
    return max(0, min(free, limit - used + other_files))


def give_back_freed_memory() -> None:
    """Return freed memory to the system: the C library keeps about 100 MB after loading a model."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; other C libraries keep less
    if trim is not None:
        trim(0)


def gpu_step_bytes(config: ModelConfig, max_batch_tokens: int, max_num_seqs: int) -> int:
    """Return an upper estimate of the memory of a step's tensors on a GPU, the KV pool and the weights apart.

    For each token what a layer holds at once, in float32 at most: the residual stream, its norm, queries, keys, values
    and their mixture, and the feed-forward network's gate, up and product. For each sequence its logits, and what the
    sampler makes of them. The tensors of one layer are freed before the next one's.
    """
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    token_bytes = 4 * (3 * config.hidden_size + heads + 4 * config.intermediate_size)
    row_bytes = 4 * (FLOATS_PER_LOGIT * config.vocab_size)
    return max_batch_tokens * token_bytes + max_num_seqs * row_bytes + LIBRARY_BYTES


def free_gpu_memory_bytes(device: torch.device) -> int:
    """Return the free bytes of a GPU."""
    return int(torch.cuda.mem_get_info(device)[0])
