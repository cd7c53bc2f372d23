"""Graphs: a decode step recorded once for each size of a ladder, and replayed with the numbers of each step."""

import weakref
from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Decode = Callable[[], Tensor]  # reads fixed tensors and returns logits, [size, vocab_size]
Capture = Callable[[Decode], Decode]  # returns what does the same again, perhaps faster

SMALL_SIZES = (1, 2, 4, 8)
SIZE_STEP = 16  # between larger sizes


def ladder(max_num_seqs: int) -> list[int]:
    """Return the numbers of rows that decode steps are padded to, ascending; the last is max_num_seqs."""
    sizes = [*SMALL_SIZES, *range(SIZE_STEP, max_num_seqs, SIZE_STEP)]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


def padded_size(num_rows: int, sizes: Sequence[int]) -> int:
    """Return the smallest size of a ladder with room for a number of rows."""
    return sizes[bisect_left(sizes, num_rows)]


def without_graph(decode: Decode) -> Decode:
    """Return a decode step as it is: for the CPU, which has no graphs."""
    return decode


def cuda_graph_capture() -> Capture:
    """Return what records decode steps as CUDA graphs, which share their memory: only one runs at a time.

    All tensors of a step must stay where they are, and nothing may be read back: then the recording fails.
    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
    """
    pool = torch.cuda.graph_pool_handle()
    graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def capture(decode: Decode) -> Decode:
        nonlocal pool
        if not graphs:  # the first ones, or those of a smaller KV pool: PyTorch may refuse memory whose graphs are gone
            pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types for it
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            decode()  # once before: libraries allocate memory in their first call
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        graphs.add(graph)
        with torch.cuda.graph(graph, pool=pool):
            logits = decode()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

    return capture
