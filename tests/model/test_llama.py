"""The model against an independent implementation, and its parts against their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from caravan.model.feed_forward import gelu
from caravan.model.kv_cache import KVCache
from caravan.model.position_tables import query_scales
from caravan.model.rms_norm import RMSNorm
from caravan.model.rope import apply_rope, rope_table
from caravan.model.soft_cap import soft_cap
from tests.model.oracle import logits_of_every_position, transformers_twin
from tests.scheduler.requests import make_request
from tests.support.tiny_llama import run_to_end, tiny_engine, tiny_llama


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (8, 2), (6, 2), (9, 3), (4, 1), (1, 1)], ids=str
)
def test_logits_and_greedy_tokens_equal_transformers(num_heads: int, num_kv_heads: int, tied: bool) -> None:
    model = tiny_llama(
        hidden_size=12 * num_heads,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        tie_embeddings=tied,
        rope_theta=1000.0,
    )
    twin = transformers_twin(model)
    prompt = torch.randint(0, 300, (1, 70), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = twin(prompt).logits[0]
    torch.testing.assert_close(logits_of_every_position(model, prompt[0].tolist()), expected, atol=1e-4, rtol=1e-4)

    tokens = prompt[0].tolist()
    for _ in range(24):
        with torch.inference_mode():
            tokens.append(int(twin(torch.tensor([tokens])).logits[0, -1].argmax()))
    request = make_request(0, prompt[0].tolist(), max_tokens=24)
    assert run_to_end(tiny_engine(model), [request])[0].token_ids == tokens[70:]


def test_long_contexts_span_several_tiles_and_equal_transformers() -> None:
    model = tiny_llama()
    prompt = torch.randint(0, 300, (1, 500), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = transformers_twin(model)(prompt).logits[0]
    # transformers turns by float32 angles, whose error at position 500 is 3e-5
    torch.testing.assert_close(logits_of_every_position(model, prompt[0].tolist()), expected, atol=5e-4, rtol=1e-4)


def test_gelu_and_the_soft_cap_are_written_out_without_loss() -> None:
    x = torch.cat((torch.linspace(-12, 12, 1001), torch.tensor([-1e4, 1e4, -1e-6, 1e-6])))
    torch.testing.assert_close(gelu(x), F.gelu(x, approximate="tanh"), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(soft_cap(x, 3.0), 3 * torch.tanh(x / 3), atol=1e-6, rtol=1e-6)


def test_queries_are_scaled_from_the_original_length_on() -> None:
    scales = query_scales(100, 0.5, 32)
    assert torch.equal(scales[:32], torch.ones(32))
    for position in (32, 63, 64, 99):
        expected = 1 + 0.5 * math.log(1 + position // 32)
        torch.testing.assert_close(scales[position], torch.tensor(expected))


def test_rope_rotates_each_pair_as_a_complex_number() -> None:
    cos, sin = rope_table(head_dim=6, max_position=9, theta=100.0)
    x = torch.randn(9, 2, 6)
    rotated = apply_rope(x, cos, sin)
    for position in range(9):
        for pair in range(3):
            before = torch.complex(x[position, :, pair], x[position, :, pair + 3])
            turned = before * torch.exp(torch.tensor(1j * position * 100.0 ** (-2 * pair / 6)))
            after = torch.complex(rotated[position, :, pair], rotated[position, :, pair + 3])
            torch.testing.assert_close(after, turned)


def test_rope_makes_scores_depend_on_distance_only() -> None:
    cos, sin = rope_table(head_dim=8, max_position=40, theta=10_000.0)
    query, key = torch.randn(1, 1, 8), torch.randn(1, 1, 8)

    def score(at: int, other: int) -> float:
        turned_query = apply_rope(query, cos[at : at + 1], sin[at : at + 1])
        return float((turned_query * apply_rope(key, cos[other : other + 1], sin[other : other + 1])).sum())

    assert score(5, 2) == pytest.approx(score(33, 30), abs=1e-4)


def test_rms_norm_scales_to_unit_root_mean_square() -> None:
    norm = RMSNorm(16, eps=1e-9)
    norm.weight.data = torch.full((16,), 2.0)
    out = norm(torch.randn(3, 16) * 7)
    torch.testing.assert_close(out.pow(2).mean(-1).sqrt(), torch.full((3,), 2.0))


def test_multi_query_attention_needs_a_fraction_of_the_cache_of_multi_head_attention() -> None:
    sizes = [
        KVCache(tiny_llama(num_kv_heads=n).config, 4, 8, torch.float32, torch.device("cpu")).num_bytes
        for n in (4, 2, 1)
    ]
    assert sizes == [sizes[0], sizes[0] // 2, sizes[0] // 4]
