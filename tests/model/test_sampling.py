"""Sampling against the definitions in plain Python, and the promise that a row does not see its neighbours."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from caravan.model.sampling.sampler import SamplingRow, adjust_logits, draw, largest_logits, sample, uniform
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.model.sampling.truncation import kept_tokens

VOCAB_SIZE = 768


def row(*, prompt: tuple[int, ...] = (), output: tuple[int, ...] = (), **params: Any) -> SamplingRow:
    return SamplingRow(SamplingParams(**{"seed": 1, "max_tokens": 100} | params), len(output), prompt, output)


def random_logits(seed: int, *shape: int, spread: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread


def tokens_to_keep(probabilities: list[float], *, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Return the tokens that may be drawn, by the definitions of top_k, top_p and min_p over a full sort."""
    order = sorted(range(len(probabilities)), key=lambda token_id: -probabilities[token_id])
    if top_k:
        order = order[:top_k]
    mass = math.fsum(probabilities[token_id] for token_id in order)
    nucleus: list[int] = []
    for token_id in order:
        if top_p < 1 and math.fsum(probabilities[kept] for kept in nucleus) >= top_p * mass:
            break
        nucleus.append(token_id)
    least = min_p * max(probabilities)
    return {token_id for token_id in nucleus if probabilities[token_id] >= least}


@pytest.mark.parametrize("vocab_size", [1, 7, 256, 300, 1000, 49152])
def test_the_largest_logit_is_the_first_of_those_that_are_equal(vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randint(-3, 4, (50, vocab_size), generator=generator).float()
    maxima, token_ids = largest_logits(logits)
    assert token_ids.tolist() == [row.index(max(row)) for row in logits.tolist()]
    assert torch.equal(maxima, logits.amax(dim=-1))


def test_the_largest_logit_of_a_row_with_nan_is_nan() -> None:
    logits = torch.zeros(3, 512)
    logits[1, 300] = torch.nan
    assert largest_logits(logits)[0].isnan().tolist() == [False, True, False]


def test_temperature_zero_takes_the_most_probable_token() -> None:
    logits = random_logits(0, 5, VOCAB_SIZE)
    for temperature in (0.0, 1e-6):
        samples = sample(logits, [row(temperature=temperature)] * 5)
        assert [found.token_id for found in samples if found] == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("penalty", [5e-324, 1e-30, 1e38])
def test_a_repetition_penalty_as_small_or_large_as_can_be_leaves_a_token(penalty: float, temperature: float) -> None:
    logits = random_logits(5, 1, VOCAB_SIZE)
    seen = tuple(logits[0].topk(5).indices.tolist())
    [found] = sample(logits, [row(temperature=temperature, repetition_penalty=penalty, prompt=seen)])
    assert found is not None
    assert (found.token_id in seen) == (penalty < 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_with_nan_or_infinity_fails_alone(bad: float) -> None:
    logits = random_logits(1, 3, VOCAB_SIZE)
    rows = [row(temperature=temperature, num_logprobs=2) for temperature in (0, 1, 1)]
    clean = sample(logits, rows)
    logits[1, 17] = bad
    assert sample(logits, rows) == [clean[0], None, clean[2]]


@given(
    seed=st.integers(0, 50),
    top_k=st.sampled_from([0, 1, 2, 50, 256, 257, VOCAB_SIZE - 1, VOCAB_SIZE + 5]),
    top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    spread=st.sampled_from([0.01, 0.5, 3.0, 20.0]),
)
@settings(max_examples=150, deadline=None)
def test_truncation_keeps_what_the_definitions_keep(
    seed: int, top_k: int, top_p: float, min_p: float, spread: float
) -> None:
    probabilities = random_logits(seed, VOCAB_SIZE, spread=spread).softmax(-1)
    params = row(top_k=top_k, top_p=top_p, min_p=min_p).params
    kept = set(kept_tokens(probabilities.numpy(), params, float(probabilities.sum())).tolist())
    expected = tokens_to_keep(probabilities.tolist(), top_k=top_k, top_p=top_p, min_p=min_p)
    # Where the mass is reached up to rounding, one token more or less is as right; equal ones go together.
    boundary = [float(probabilities[token_id]) for token_id in kept ^ expected]
    assert len(set(boundary)) <= 1


@given(st.integers(0, 1000), st.sampled_from([{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}]))
@settings(max_examples=30, deadline=None)
def test_the_tightest_truncation_is_greedy(seed: int, params: dict[str, Any]) -> None:
    logits = random_logits(seed, VOCAB_SIZE)
    assert draw(logits.unsqueeze(0), [row(temperature=2.0, seed=seed, **params)]) == [int(logits.argmax())]


@pytest.mark.parametrize(
    "params", [{}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.3}]
)
def test_tokens_come_as_often_as_their_probability_says(params: dict[str, Any]) -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])
    probabilities = (logits / params.get("temperature", 1.0)).softmax(-1).tolist()
    kept = tokens_to_keep(
        probabilities,
        top_k=int(params.get("top_k", 0)),
        top_p=params.get("top_p", 1.0),
        min_p=params.get("min_p", 0.0),
    )
    total = sum(probabilities[token_id] for token_id in kept)
    num_draws = 8000
    asked = row(seed=7, **params)
    counts = Counter(draw(logits.expand(num_draws, -1), [asked._replace(position=p) for p in range(num_draws)]))
    for token_id, probability in enumerate(probabilities):
        expected = probability / total if token_id in kept else 0.0
        tolerance = 4 * math.sqrt(expected * (1 - expected) * num_draws)
        assert abs(counts[token_id] - expected * num_draws) <= tolerance


def test_a_row_gives_the_same_in_any_batch() -> None:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0.7, "top_p": 0.9},
        {"top_k": 400},
        {"min_p": 0.02, "repetition_penalty": 1.3},
        {"presence_penalty": 0.5, "frequency_penalty": 0.5, "temperature": 0},
        {"logit_bias": {3: 4.0}, "min_tokens": 4, "stop_token_ids": (5, 6)},
    ]
    rows = [
        row(seed=seed, prompt=(1, 2), output=(2, 3, 3), num_logprobs=seed % 3, **kind)
        for seed, kind in enumerate(kinds * 3)
    ]
    logits = random_logits(3, len(rows), VOCAB_SIZE)
    together = sample(logits, rows)
    assert together == [sample(logits[index : index + 1], [one])[0] for index, one in enumerate(rows)]
    assert together == sample(logits.flip(0), rows[::-1])[::-1]


@pytest.mark.parametrize("vocab_size", [5, 300, 1001, 49152])
def test_a_row_is_drawn_alike_in_any_batch_of_any_vocabulary(vocab_size: int) -> None:
    kinds: list[dict[str, Any]] = [{}, {"top_p": 0.9}, {"top_k": 4}, {"top_k": 300, "top_p": 0.5}, {"min_p": 0.01}]
    rows = [row(seed=seed, temperature=0.5 + seed % 3, **kinds[seed % 5]) for seed in range(30)]
    logits = random_logits(8, len(rows), vocab_size)
    together = draw(logits, rows)
    assert together == [draw(logits[index : index + 1], [one])[0] for index, one in enumerate(rows)]
    assert together == draw(logits.flip(0), rows[::-1])[::-1]


def test_tokens_whose_probability_vanishes_are_never_drawn() -> None:
    logits = torch.full((1, 512), -1000.0)
    logits[0, 300] = logits[0, 310] = 0.0
    asked = [row(seed=seed) for seed in range(200)]
    assert set(draw(logits.expand(200, -1), asked)) == {300, 310}


@given(
    presence=st.sampled_from([0.0, -1.5, 0.7]),
    frequency=st.sampled_from([0.0, -0.5, 1.1]),
    repetition=st.sampled_from([0.5, 1.0, 1.8]),
    prompt=st.lists(st.integers(0, 9), max_size=5),
    output=st.lists(st.integers(0, 9), max_size=5),
    bias=st.dictionaries(st.integers(0, 9), st.sampled_from([-100.0, 2.5, 100.0]), max_size=3),
    min_tokens=st.integers(0, 6),
)
@settings(max_examples=200, deadline=None)
def test_penalties_and_bias_follow_their_formulas(
    presence: float,
    frequency: float,
    repetition: float,
    prompt: list[int],
    output: list[int],
    bias: dict[int, float],
    min_tokens: int,
) -> None:
    logits = random_logits(4, 10)
    before = logits.clone()
    asked = row(
        prompt=tuple(prompt),
        output=tuple(output),
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        logit_bias=bias,
        min_tokens=min_tokens,
        stop_token_ids=(8, 9),
    )
    sample(logits.unsqueeze(0), [asked])
    assert torch.equal(logits, before)  # log-probabilities are the model's own
    adjusted = logits.clone()
    adjust_logits(adjusted, asked)
    for token_id, value in enumerate(before.tolist()):
        if token_id in prompt or token_id in output:
            value = value / repetition if value > 0 else value * repetition
        if token_id in output:
            value -= presence + frequency * output.count(token_id)
        value += bias.get(token_id, 0.0)
        if token_id in (8, 9) and len(output) < min_tokens:
            value = -math.inf
        assert float(adjusted[token_id]) == pytest.approx(value, rel=1e-5, abs=1e-5)


def test_logprobs_are_the_models_own_whatever_was_asked_of_the_sampler() -> None:
    logits = random_logits(5, 1, VOCAB_SIZE)
    exact = logits[0].double().log_softmax(-1)
    [found] = sample(logits, [row(temperature=0.3, logit_bias={7: 100.0}, num_logprobs=5, output=(1,))])
    assert found is not None
    assert found.token_id == 7
    assert found.logprob == pytest.approx(float(exact[7]), abs=1e-4)
    assert list(found.top_token_ids) == exact.topk(5).indices.tolist()
    assert list(found.top_logprobs) == pytest.approx(exact.topk(5).values.tolist(), abs=1e-4)


def test_logprobs_come_only_as_many_as_asked_for() -> None:
    logits = random_logits(6, 3, 10)
    none, zero, many = sample(logits, [row(num_logprobs=number) for number in (None, 0, 20)])
    assert none is not None
    assert zero is not None
    assert many is not None
    assert (none.logprob, none.top_token_ids) == (None, ())
    assert zero.logprob is not None
    assert zero.top_token_ids == ()
    assert sorted(many.top_token_ids) == list(range(10))


def test_random_numbers_depend_on_seed_and_position_alone() -> None:
    numbers = {(seed, position): uniform(seed, position) for seed in range(40) for position in range(40)}
    assert all(0 <= number < 1 for number in numbers.values())
    assert len(set(numbers.values())) == len(numbers)
    assert sum(numbers.values()) / len(numbers) == pytest.approx(0.5, abs=0.03)
    assert numbers == {key: uniform(*key) for key in reversed(numbers)}
    assert 0 <= uniform(2**64 - 1, 10**9) < 1


def test_neighbouring_seeds_and_positions_are_not_related() -> None:
    for numbers in (
        torch.tensor([uniform(seed, 0) for seed in range(2000)]),
        torch.tensor([uniform(0, position) for position in range(2000)]),
    ):
        assert abs(float(torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1])) < 0.07
