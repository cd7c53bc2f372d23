"""Same request, same answer: tokens and logprobs are equal to the last bit whatever happens around the request."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caravan.model.linear import row_invariant_linear
from caravan.model.rope_scaling import YarnScaling
from caravan.scheduler.messages import Request
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import KINDS, block_sizes, engine_of, model_in, random_prompt
from tests.support.extent import every, extent
from tests.support.tiny_llama import Transcript, run_to_end

pytestmark = pytest.mark.slow

KINDS += [f"{kind}, int8 pool" for kind in ("bfloat16", "float32 attention", "none", "int8")]
KINDS += [f"{kind}, overlapped" for kind in ("float32", "none", "int8, int8 pool")]
PARAMS: list[dict[str, float]] = [
    {},
    {"temperature": 0.0},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"repetition_penalty": 1.3},
]


def solo(kind: str, request: Request) -> Transcript:
    return run_to_end(engine_of(kind.removesuffix(", overlapped"), block_size=16), [request])[request.request_id]


def sampled(request_id: int, prompt: list[int], **params: Any) -> Request:
    defaults = {"temperature": 0.9, "seed": request_id, "num_logprobs": 3, "max_tokens": 12}
    return make_request(request_id, prompt, **(defaults | params))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=extent(40, 15), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_a_request_gets_the_same_bits_in_any_batch_chunking_and_pool(draw: st.DataObject, kind: str) -> None:
    stem = random_prompt(0, 60)
    requests = []
    for request_id in range(draw.draw(st.integers(1, 6))):
        shared = stem[: draw.draw(st.integers(0, 60))]
        own = random_prompt(draw.draw(st.integers(1, 1000)), draw.draw(st.integers(1, 40)))
        requests.append(sampled(request_id, shared + own, **draw.draw(st.sampled_from(PARAMS))))
    engine = engine_of(
        kind,
        block_size=draw.draw(st.sampled_from(block_sizes(kind))),
        num_blocks=draw.draw(st.sampled_from([64, 32])),
        max_model_len=128,
        max_batch_tokens=draw.draw(st.sampled_from([1, 7, 33, 256])),
    )
    together = run_to_end(engine, requests, arrive_every=draw.draw(st.integers(0, 5)))
    for request in requests:
        assert together[request.request_id] == solo(kind, request)


@pytest.mark.parametrize("kind", KINDS)
def test_preemption_changes_no_bit(kind: str) -> None:
    requests = [sampled(i, random_prompt(i, 20), max_tokens=30) for i in range(6)]
    size = block_sizes(kind)[0]
    engine = engine_of(kind, num_blocks=64 // size, block_size=size, max_model_len=64)
    num_preemptions: list[int] = []
    together = run_to_end(engine, requests, on_step=lambda output: num_preemptions.append(output.stats.num_preemptions))
    assert sum(num_preemptions) > 0
    assert together == {request.request_id: solo(kind, request) for request in requests}


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_no_bit(kind: str) -> None:
    requests = [sampled(i, random_prompt(i, 20 + i), max_tokens=4) for i in range(3)]
    before = torch.get_num_threads()
    transcripts = []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            transcripts.append(run_to_end(engine_of(kind, block_size=16), requests))
    finally:
        torch.set_num_threads(before)
    assert transcripts[0] == transcripts[1]


@pytest.mark.parametrize("kind", KINDS)
def test_choices_that_share_one_prefill_get_the_bits_they_get_alone(kind: str) -> None:
    requests = [sampled(i, random_prompt(5, 58), group=1) for i in range(8)]
    num_prefilled: list[int] = []
    engine = engine_of(kind, block_size=16)
    together = run_to_end(engine, requests, on_step=lambda step: num_prefilled.append(step.stats.num_prefill_tokens))
    assert sum(num_prefilled) == 58 + 7  # the last token of each prompt gives its first logits
    assert together == {request.request_id: solo(kind, request) for request in requests}


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_hit_changes_no_bit(kind: str) -> None:
    engine = engine_of(kind, block_size=16)
    request = sampled(0, random_prompt(5, 50))
    first = run_to_end(engine, [request])[0]
    second = run_to_end(engine, [request])[0]
    assert second.num_cached_tokens == 48
    assert first.num_cached_tokens == 0
    assert second == first == solo(kind, request)


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_submitted_again_with_its_output_so_far_continues_unchanged(kind: str) -> None:
    request = sampled(0, random_prompt(6, 30), max_tokens=20)
    whole = solo(kind, request)
    for cut in (1, 7, 19):
        again = Request(
            request_id=0,
            prompt_token_ids=request.prompt_token_ids,
            params=request.params,
            output_token_ids=whole.token_ids[:cut],
        )
        rest = solo(kind, again)
        assert rest.token_ids == whole.token_ids[cut:]
        assert rest.logprobs == whole.logprobs[cut:]


# The test above has few streams of every kind; by default this one has many of every third.
@pytest.mark.parametrize("kind", every(3, KINDS))
def test_sixty_four_streams_in_a_pool_for_a_quarter_of_them_equal_their_solo_runs(kind: str) -> None:
    requests = [sampled(i, random_prompt(i, 10 + i % 23), max_tokens=24) for i in range(64)]
    # a request ends with at most 32 + 24 tokens: 4 blocks of 16; a quarter of 64 such requests is 64 blocks
    engine = engine_of(kind, num_blocks=64, block_size=16, max_num_seqs=64, max_batch_tokens=128)
    together = run_to_end(engine, requests)
    assert together == {request.request_id: solo(kind, request) for request in requests}


@pytest.mark.parametrize("kind", KINDS)
def test_biases_norms_windows_and_scaled_rope_change_no_bit(kind: str) -> None:
    model = model_in(
        kind,
        has_qkv_bias=True,
        has_output_bias=True,
        has_query_key_norm=True,
        sliding_window=19,
        full_layers=(0,),
        rope_scaling=YarnScaling(factor=4.0, original_max_position=32),
    )
    requests = [sampled(i, random_prompt(i % 4, 30 + i), max_tokens=20) for i in range(8)]
    size = block_sizes(kind)[0]
    crowded = engine_of(kind, model, num_blocks=128 // size, block_size=size, max_batch_tokens=9, max_model_len=64)
    together = run_to_end(crowded, requests, arrive_every=2)
    for request in requests:
        assert (
            together[request.request_id]
            == run_to_end(engine_of(kind, model, block_size=16), [request])[request.request_id]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_out", "num_in"), [(960, 576), (576, 1536), (33, 17), (48, 48), (1, 8)])
def test_a_row_of_a_linear_layer_has_the_same_bits_among_any_number_of_rows(
    dtype: torch.dtype, num_out: int, num_in: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, num_in, generator=generator).to(dtype)
    weight = torch.randn(num_out, num_in, generator=generator).to(dtype)
    everything = row_invariant_linear(x, weight)
    for num_rows in (*range(1, 18), 31, 32, 33, 64, 100, 128, 129, 257):
        pieces = torch.cat([row_invariant_linear(rows, weight) for rows in x.split(num_rows)])
        assert torch.equal(pieces, everything), num_rows
