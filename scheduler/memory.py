"""Free memory for the KV pool, and what a step needs beside it."""

import ctypes
import re
from pathlib import Path

import psutil
import torch

from caravan.model.config import ModelConfig
from caravan.scheduler.speculation import MAX_ROWS

FLOATS_PER_LOGIT = 8  # in a step with prompts, in a graph and for both, without late rows, and what the sampler keeps
SPLIT_TOKENS = 512  # positions that a program of the attention kernel sums up
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


def gpu_step_bytes(
    config: ModelConfig, draft: ModelConfig | None, max_batch_tokens: int, max_num_seqs: int, max_model_len: int
) -> int:
    """Return an upper estimate of the memory of a step's tensors on a GPU, the KV pools and the weights apart.

    For each sequence its logits, and what the sampler makes of them; the sums of the splits of its context, in a graph
    and in steps with prompts; and the tokens of a graph. The draft model has no graph, and uses the memory of a step
    with prompts when that one is over, but the tensors of at most MAX_ROWS logits.
    """
    num_rows = max(max_num_seqs, MAX_ROWS)
    split_bytes = max_num_seqs * _split_bytes(config, max_model_len)
    step_bytes = max_batch_tokens * _token_bytes(config) + split_bytes
    graph_bytes = max_num_seqs * _token_bytes(config) + split_bytes
    logit_bytes = 4 * num_rows * FLOATS_PER_LOGIT * config.vocab_size
    if draft is not None:
        draft_bytes = max_batch_tokens * _token_bytes(draft) + max_num_seqs * _split_bytes(draft, max_model_len)
        step_bytes = max(step_bytes, draft_bytes + 4 * MAX_ROWS * draft.vocab_size)
    return step_bytes + graph_bytes + logit_bytes + LIBRARY_BYTES


def _token_bytes(config: ModelConfig) -> int:
    """Return what a layer holds of a token at once, in float32 at most; it is freed before the next layer's.

    The residual stream, its norm, queries, keys, values and their mixture, and the feed-forward network's gate, up and
    product.
    """
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return 4 * (3 * config.hidden_size + heads + 4 * config.intermediate_size)


def _split_bytes(config: ModelConfig, num_tokens: int) -> int:
    """Return the size of the sums of one query's splits, over a context of num_tokens, in float32."""
    return 4 * config.num_heads * -(-num_tokens // SPLIT_TOKENS) * (config.head_dim + 2)


def free_gpu_memory_bytes(device: torch.device) -> int:
    """Return the free bytes of a GPU."""
    return int(torch.cuda.mem_get_info(device)[0])
