"""Prompt log-probabilities and embeddings of the whole engine over a tiny model are those of transformers."""

from typing import Any

import pytest
import torch

from caravan.model.llama import Llama
from caravan.model.sampling.sample import Sample
from caravan.scheduler.messages import Request
from caravan.scheduler.prompt_result import PromptResult
from caravan.scheduler.scored_prefixes import ScoredPrefixes
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


@pytest.mark.slow
def test_log_probabilities_of_token_ids_after_a_prompt_are_those_of_transformers(model: Llama) -> None:
    wanted = (7, 250, 0, 7)
    transcript = run_to_end(tiny_engine(model), [asked(0, wanted)])[0]
    with torch.inference_mode():
        logprobs = transformers_twin(model)(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    assert transcript.token_logprobs == pytest.approx(logprobs[list(wanted)].tolist(), abs=1e-3)
    assert (transcript.token_ids, transcript.finish_reason) == ([], "length")


def asked(request_id: int, token_ids: tuple[int, ...], prompt: list[int] = PROMPT, **fields: object) -> Request:
    return scored(
        request_id, prompt, **({"num_prompt_logprobs": None, "max_tokens": 0} | fields), logprob_token_ids=token_ids
    )


def test_log_probabilities_of_token_ids_are_those_beside_a_sampled_token(model: Llama) -> None:
    sampled = run_to_end(tiny_engine(model), [asked(0, (1, 2), max_tokens=3, num_logprobs=20)])[0]
    best = sampled.logprobs[0]
    again = run_to_end(tiny_engine(model), [asked(0, tuple(best.top_token_ids))])[0]
    assert again.token_logprobs == best.top_logprobs
    assert len(sampled.token_logprobs) == 2
    assert len(sampled.token_ids) == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "float32, overlapped", "int8, overlapped"])
def test_questions_about_one_state_get_the_bits_they_get_alone_and_share_its_prefill(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = random_prompt(9, 70)

    def questions() -> list[Request]:
        shared: dict[str, object] = {"group": 7, "num_shared_tokens": len(state)}
        asking = [asked(i, (i, 299 - i), state + random_prompt(i, 20 + i % 5), **shared) for i in range(20)]
        beside = [make_request(100 + i, random_prompt(i, 9), max_tokens=30, temperature=0.8) for i in range(3)]
        also = asked(99, (5,), [*state, 1, 2], num_prompt_logprobs=1, max_tokens=2)
        return [*asking[:9], *beside, also, *asking[9:]]

    alone = {
        one.request_id: run_to_end(engine_of(kind.removesuffix(", overlapped"), block_size=16), [one])[one.request_id]
        for one in questions()
    }
    monkeypatch.setattr("caravan.scheduler.prompt_logprobs.MAX_SCORED_ROWS", 6)
    num_prefilled: list[int] = []
    engine = engine_of(kind, block_size=16, max_num_seqs=100, num_blocks=400)
    together = run_to_end(engine, questions(), on_step=lambda step: num_prefilled.append(step.stats.num_prefill_tokens))
    assert together == alone
    num_own = sum(20 + i % 5 for i in range(20))
    assert sum(num_prefilled) == 70 + num_own + 72 + 3 * 9  # the state once for all, and once for the scored prompt
    narrow = engine_of(kind, block_size=16, max_batch_tokens=17, max_num_seqs=5)
    assert run_to_end(narrow, questions()) == alone


def test_a_question_takes_no_block_of_others_for_itself(model: Llama) -> None:
    state = random_prompt(9, 20)
    shared: dict[str, object] = {"group": 7, "num_shared_tokens": 20, "salt": "s"}
    questions = [asked(i, (i,), [*state, *random_prompt(i, 12 + i % 3)], **shared) for i in range(12)]
    alone = [run_to_end(tiny_engine(model, block_size=16), [one])[one.request_id] for one in questions]
    engine = tiny_engine(
        model, block_size=16, num_blocks=3, max_model_len=48
    )  # one sequence at a time, or one less block
    assert [*run_to_end(engine, questions).values()] == alone
    others = [make_request(50 + i, random_prompt(i, 20), max_tokens=9) for i in range(4)]
    found = run_to_end(tiny_engine(model, block_size=16, num_blocks=7, max_model_len=48), [*questions, *others])
    assert [found[one.request_id] for one in questions] == alone


def test_a_scored_prompt_is_computed_even_if_it_is_cached(model: Llama) -> None:
    engine = tiny_engine(model, block_size=16)
    plain = make_request(0, PROMPT)
    run_to_end(engine, [plain])
    assert run_to_end(engine, [scored(1)])[1].num_cached_tokens == 0
    assert run_to_end(engine, [embedded(2, "last")])[2].num_cached_tokens == 48
    assert run_to_end(engine, [make_request(3, PROMPT)])[3].num_cached_tokens == 48


@pytest.mark.parametrize("num_logprobs", [0, 2])
def test_a_scored_prefix_is_not_scored_again(model: Llama, num_logprobs: int) -> None:
    engine = tiny_engine(model, block_size=16)
    others = [PROMPT, [*PROMPT[:40], 1, 2, 3], PROMPT[:48], PROMPT[:16], PROMPT[:47], [9, *PROMPT[1:]]]
    requests = [scored(i, prompt, num_prompt_logprobs=num_logprobs) for i, prompt in enumerate(others)]
    expected = [run_to_end(tiny_engine(model, block_size=16), [one])[one.request_id] for one in requests]
    found = [run_to_end(engine, [one])[one.request_id] for one in requests]
    assert found == expected
    # Of a known prefix the last block is computed again: its last position gives the token after it.
    assert [one.num_cached_tokens for one in found] == [0, 16, 32, 0, 16, 0]
    assert run_to_end(engine, [requests[2]])[2] == expected[2]
    assert run_to_end(engine, [scored(9, num_prompt_logprobs=num_logprobs, salt="other")])[9].num_cached_tokens == 0
    assert run_to_end(engine, [scored(9, num_prompt_logprobs=num_logprobs + 1)])[9].num_cached_tokens == 0


def test_scored_prompts_that_come_together_wait_for_their_common_prefix(model: Llama) -> None:
    requests = [scored(i, [*PROMPT, i, i + 1], logprob_token_ids=(i, 5)) for i in range(4)]
    expected = {i: run_to_end(tiny_engine(model, block_size=16), [one])[i] for i, one in enumerate(requests)}
    num_prefilled: list[int] = []
    engine = tiny_engine(model, block_size=16)
    found = run_to_end(engine, requests, on_step=lambda step: num_prefilled.append(step.stats.num_prefill_tokens))
    assert found == expected
    assert sum(num_prefilled) == 52 + 3 * (52 - 32)


def test_those_that_wait_for_a_scored_prefix_go_on_when_its_request_is_aborted(model: Llama) -> None:
    engine = tiny_engine(model, block_size=16, max_batch_tokens=16)
    for request_id in range(3):
        engine.add(scored(request_id, [*PROMPT, request_id]))
    engine.step()
    engine.scheduler.abort(0)
    ended = set()
    while engine.scheduler.has_work:
        ended |= {output.request_id for output in engine.step().outputs if output.finish_reason == "length"}
    assert ended == {1, 2}
    assert engine.scheduler.pool.num_pending == 0


def test_kept_log_probabilities_are_bounded() -> None:
    samples = [Sample(i, -float(i), (i, 3), (-0.5, float("-inf"))) for i in range(16)]
    prefixes = ScoredPrefixes(max_bytes=3 * 1000)
    for name in (b"a", b"b", b"c", b"a", b"d", b"e"):
        prefixes.find(b"a", 2)
        prefixes.add(name, 2, samples)
        assert prefixes.num_bytes <= 3000
    assert [name for name in (b"a", b"b", b"c", b"d", b"e") if prefixes.find(name, 2)] == [b"a", b"d", b"e"]
    known = prefixes.find(b"a", 2)
    assert known is not None
    assert (known[3].logprob, known[3].top_token_ids, known[3].top_logprobs) == (-3.0, [3, 3], [-0.5, float("-inf")])
    assert prefixes.find(b"a", 1) is None
    ScoredPrefixes(max_bytes=100).add(b"a", 2, samples)  # more than all of it: not kept


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
    assert PromptResult(token_logprobs=[float("-inf")]).is_finite
    assert not PromptResult(token_logprobs=[float("nan")]).is_finite
