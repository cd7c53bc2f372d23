"""The arithmetic of the quality command, on tiny models."""

import math

import pytest
import torch

from benchmarks.quality import Quality, compare, mean_of, measure, table, verdict
from tests.model.oracle import logits_of_every_position
from tests.support.tiny_llama import tiny_llama

TEXT = torch.randint(0, 300, (101,), generator=torch.Generator().manual_seed(2)).tolist()


def test_perplexity_divergence_and_agreement_are_those_of_the_definitions() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]), torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]])
    quality = compare(q.log() + 3, p.log() - 1, torch.tensor([1, 2]))  # logits are log-probabilities up to a constant
    assert quality.perplexity == pytest.approx((0.5 * 0.8) ** -0.5, rel=1e-5)
    assert quality.agreement == 0.5
    first, second = 0.25 * math.log(2), 0.2 * math.log(2) + 0.7 * math.log(0.7 / 0.8)
    assert quality.divergence == pytest.approx((first + second) / 2, abs=1e-6)


def test_means_weigh_each_token_alike() -> None:
    mean = mean_of([Quality(1, 4.0, 0.4, 1.0), Quality(3, 0.0, 0.0, 0.0)])
    assert mean == Quality(4, 1.0, 0.1, 0.25)


@pytest.mark.parametrize("chunk", [50, 16, 7])
def test_windows_in_chunks_give_the_perplexity_of_each_window_read_at_once(chunk: int) -> None:
    exact, rounded = tiny_llama(), tiny_llama(dtype=torch.bfloat16)
    models = {"float32": (exact, torch.float32), "bfloat16": (rounded, torch.bfloat16)}
    results = measure(models, TEXT, [], window=50, chunk=chunk)
    for name, (model, _) in models.items():
        logits = torch.cat([logits_of_every_position(model, TEXT[start : start + 50]) for start in (0, 50)])
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(TEXT[1:]))
        assert results[name].num_tokens == 100
        assert results[name].loss == pytest.approx(float(loss), rel=1e-4)
    assert results["float32"].divergence == 0
    assert results["float32"].agreement == 1
    assert 0 < results["bfloat16"].divergence < 0.01


def test_what_stands_before_a_window_is_read_and_predicts_its_first_token() -> None:
    model = tiny_llama()
    quality = measure({"float32": (model, torch.float32)}, TEXT[:51], [1], window=50, chunk=20)["float32"]
    loss = torch.nn.functional.cross_entropy(logits_of_every_position(model, [1, *TEXT[:50]]), torch.tensor(TEXT[:51]))
    assert quality.num_tokens == 51
    assert quality.loss == pytest.approx(float(loss), rel=1e-4)


def test_a_limit_that_one_text_breaks_is_not_held() -> None:
    def results(int8: float, divergence: float = 0.0) -> dict[str, Quality]:
        losses = {"bfloat16": 1.0, "native": 1.002, "int8": int8, "int4": 1.002}
        return {name: Quality(10, loss, divergence, 1.0) for name, loss in losses.items()}

    good, bad = results(1.009), results(1.02)
    assert "NOT" not in verdict({"a": good})
    assert "int8: perplexity within 1.0 % of bfloat16, NOT held (+2.02 % at worst)" in verdict({"a": good, "b": bad})
    assert "native: mean KL divergence from float32 within 0.002, NOT held (0.00300 at worst)" in verdict(
        {"a": good, "b": results(1.009, divergence=0.003)}
    )
    assert "| int8 | 2.773 | +2.02 % | 100.0 % | 0.00000 |" in table({"b": bad})
