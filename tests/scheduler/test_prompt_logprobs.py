"""Prompt log-probabilities and embeddings of the whole engine over a tiny model are those of transformers."""

from typing import Any

import pytest
import torch

from caravan.model.llama import Llama
from caravan.model.sampling.sample import Sample
from caravan.scheduler.messages import Request
from caravan.scheduler.prompt_logprobs import PromptResult
from tests.model.oracle import transformers_twin
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import KINDS, engine_of, random_prompt
from tests.support.tiny_llama import run_to_end, tiny_engine, tiny_llama

PROMPT = random_prompt(3, 50)


@pytest.fixture(scope="module")
def model() -> Llama:
    return tiny_llama(dtype=torch.float32)


def scored(request_id: int, prompt: list[int] = PROMPT, **fields: object) -> Request:
    return make_request(request_id, prompt, **({"num_prompt_logprobs": 2, "max_tokens": 3} | fields))  # type: ignore[arg-type]  # fields of any type


@pytest.mark.slow
def test_log_probabilities_of_a_prompt_are_those_of_transformers(model: Llama) -> None:
    transcript = run_to_end(tiny_engine(model), [scored(0)])[0]
    with torch.inference_mode():
        logprobs = transformers_twin(model)(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    assert len(transcript.prompt_logprobs) == len(PROMPT) - 1
    for position, entry in enumerate(transcript.prompt_logprobs):
        assert entry.logprob == pytest.approx(float(logprobs[position, PROMPT[position + 1]]), abs=1e-3)
        best = logprobs[position].topk(2)
        assert entry.top_token_ids == best.indices.tolist()
        assert entry.top_logprobs == pytest.approx(best.values.tolist(), abs=1e-3)
    assert len(transcript.token_ids) == 3


def test_a_scored_prompt_without_output_ends_with_the_reason_length(model: Llama) -> None:
    transcript = run_to_end(tiny_engine(model, max_model_len=50), [scored(0, max_tokens=0)])[0]
    assert (transcript.token_ids, transcript.finish_reason) == ([], "length")
    assert len(transcript.prompt_logprobs) == len(PROMPT) - 1
    assert run_to_end(tiny_engine(model), [scored(0, [7], max_tokens=0)])[0].prompt_logprobs == []


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_embedding_is_that_of_the_last_hidden_states_of_transformers(model: Llama, pooling: str) -> None:
    transcript = run_to_end(tiny_engine(model), [embedded(0, pooling)])[0]
    with torch.inference_mode():
        states = transformers_twin(model)(torch.tensor([PROMPT]), output_hidden_states=True).hidden_states[-1][0]
    expected = states.mean(dim=0) if pooling == "mean" else states[-1]
    torch.testing.assert_close(torch.tensor(transcript.embedding), expected, atol=1e-3, rtol=1e-3)
    assert (transcript.token_ids, transcript.finish_reason) == ([], "length")


def embedded(request_id: int, pooling: str, prompt: list[int] = PROMPT) -> Request:
    return scored(request_id, prompt, num_prompt_logprobs=None, pooling=pooling, max_tokens=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_prompt_results_have_the_same_bits_in_any_batch_and_chunking_and_after_preemptions(kind: str) -> None:
    def requests() -> list[Request]:
        prompts = [random_prompt(0, 16) + random_prompt(i, 10 + 3 * i) for i in range(4)]
        scorers = [scored(i, prompt, max_tokens=20, min_tokens=20) for i, prompt in enumerate(prompts)]
        poolers = [embedded(4 + i, "mean", prompt) for i, prompt in enumerate(prompts)]
        return [*scorers, *poolers, *(embedded(8 + i, "last", prompt) for i, prompt in enumerate(prompts))]

    alone = {r.request_id: run_to_end(engine_of(kind, block_size=16), [r])[r.request_id] for r in requests()}
    preemptions: list[int] = []
    limits: Any
    for limits in ({"max_batch_tokens": 7}, {"num_blocks": 9, "max_model_len": 64}, {"max_batch_tokens": 256}):
        engine = engine_of(kind, block_size=16, **limits)
        together = run_to_end(engine, requests(), on_step=lambda step: preemptions.append(step.stats.num_preemptions))
        assert together == alone
        again = run_to_end(engine, requests())  # now the prefix cache has the prompts
        assert again == alone
    assert sum(preemptions) > 0


def test_a_scored_prompt_is_computed_even_if_it_is_cached(model: Llama) -> None:
    engine = tiny_engine(model, block_size=16)
    plain = make_request(0, PROMPT)
    run_to_end(engine, [plain])
    assert run_to_end(engine, [scored(1)])[1].num_cached_tokens == 0
    assert run_to_end(engine, [embedded(2, "last")])[2].num_cached_tokens == 48
    assert run_to_end(engine, [make_request(3, PROMPT)])[3].num_cached_tokens == 48


@pytest.mark.parametrize("pooling", [None, "mean"])
def test_results_that_are_nan_end_the_request_with_an_error(pooling: str | None) -> None:
    broken = tiny_llama(dtype=torch.float32)
    with torch.no_grad():
        broken.norm.weight.fill_(float("nan"))
    request = scored(0, num_prompt_logprobs=None if pooling else 0, pooling=pooling, max_tokens=0)
    transcript = run_to_end(tiny_engine(broken), [request])[0]
    assert transcript.finish_reason == "error"
    assert "not a finite number" in (transcript.error or "")


def test_a_prompt_token_may_have_the_probability_zero() -> None:
    assert PromptResult([Sample(1, float("-inf"))]).is_finite
    assert not PromptResult([Sample(1, float("nan"))]).is_finite
