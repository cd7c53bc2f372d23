"""The model on a GPU: the same tokens as on the CPU, and log-probabilities that differ by rounding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from caravan.model.llama import Llama
from caravan.model.loader import plain_llama
from caravan.scheduler.engine import Engine
from caravan.scheduler.overlapped_engine import OverlappedEngine
from caravan.scheduler.speculation import MAX_ROWS
from caravan.scheduler.step_graph import cuda_graph_capture
from tests.scheduler.requests import make_request
from tests.support.tiny_llama import MakeModel, Transcript, run_to_end, tiny_engine, tiny_llama

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def maker(kind: str) -> MakeModel:
    if kind == "plain":
        return plain_llama
    from caravan.model.cuda.llama import CudaLlama  # imports Triton

    return lambda config: CudaLlama(config, torch.device("cuda"), "none", fast_matmul=False)


def overlapped_engine(model: Llama, max_batch_tokens: int) -> OverlappedEngine:
    """Return an engine as LoadedModel makes it on a GPU: with the device's sampler and graphs, and warm."""
    from caravan.model.cuda.sampler import CudaSampler  # imports Triton

    table = model.embedding.weight
    config = tiny_engine(model, max_batch_tokens=max_batch_tokens).config
    sampler = CudaSampler(max(config.max_num_seqs, MAX_ROWS), model.config.vocab_size, table.device)
    engine = OverlappedEngine(model, config, table.dtype, table.device, sampler, capture=cuda_graph_capture())
    engine.warm_up()
    return engine


def transcripts(
    device: str,
    kind: str = "plain",
    dtype: torch.dtype = torch.float32,
    max_batch_tokens: int = 32,
    make_engine: Callable[[Llama, int], Engine] = lambda model, size: tiny_engine(model, max_batch_tokens=size),
    **changes: Any,
) -> dict[int, Transcript]:
    """Return what requests of several lengths get, some of them drawn, in chunks and beside each other."""
    model = tiny_llama(device=device, dtype=dtype, make_model=maker(kind), **changes)
    engine = make_engine(model, max_batch_tokens)
    assert engine.kv_cache.keys[0].device.type == device
    kinds: list[dict[str, Any]] = [{}, {}, {"temperature": 0.8, "top_p": 0.9}, {"repetition_penalty": 1.2}]
    requests = [
        make_request(i, [(7 * i + j) % 300 for j in range(5 + 11 * i)], max_tokens=24, num_logprobs=5, **params)
        for i, params in enumerate(kinds)
    ]
    found = run_to_end(engine, requests, arrive_every=3)
    assert all(transcript.finish_reason == "length" for transcript in found.values())
    return found


@pytest.mark.parametrize("kind", ["plain", "kernels"])
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("changes", [{}, {"sliding_window": 16}, {"hidden_size": 576, "head_dim": 64}])
def test_a_gpu_gives_the_tokens_of_the_cpu(kind: str, num_kv_heads: int, changes: dict[str, Any]) -> None:
    expected = transcripts("cpu", num_kv_heads=num_kv_heads, **changes)
    check(transcripts("cuda", kind, num_kv_heads=num_kv_heads, **changes), expected)


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 16}, {"hidden_size": 576, "head_dim": 64}])
def test_overlapped_steps_with_graphs_and_the_sampler_of_the_gpu_give_the_tokens_of_the_cpu(
    changes: dict[str, Any],
) -> None:
    found = transcripts("cuda", "kernels", make_engine=overlapped_engine, **changes)
    check(found, transcripts("cpu", **changes))


def test_in_overlapped_steps_a_request_has_the_same_bits_in_all_chunks_and_after_the_pool_has_shrunk() -> None:
    def shrunk(model: Llama, max_batch_tokens: int) -> OverlappedEngine:
        engine = overlapped_engine(model, max_batch_tokens)
        engine.shrink_pool()
        return engine

    first, *others = (
        transcripts("cuda", "kernels", torch.bfloat16, size, make_engine)
        for size, make_engine in [(256, overlapped_engine), (32, overlapped_engine), (7, shrunk)]
    )
    assert all(other == first for other in others)


def check(found: dict[int, Transcript], expected: dict[int, Transcript]) -> None:
    for request_id, transcript in expected.items():
        assert found[request_id].token_ids == transcript.token_ids
        for ours, theirs in zip(found[request_id].logprobs, transcript.logprobs, strict=True):
            assert ours.top_token_ids == theirs.top_token_ids
            assert ours.top_logprobs == pytest.approx(theirs.top_logprobs, abs=1e-3)


def test_the_kernels_give_a_request_the_same_bits_in_chunks_of_every_size() -> None:
    first, *others = (transcripts("cuda", "kernels", torch.bfloat16, size) for size in (256, 32, 7))
    assert all(other == first for other in others)
