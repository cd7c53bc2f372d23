"""Serial steps beside overlapped ones, with the kernels: a request's bits do not depend on what others want.

And penalties, whose tokens the device counts in overlapped steps.
"""

from typing import Any

import msgspec
import pytest
import torch
from llguidance import LLMatcher

from caravan.model.cuda.llama import CudaLlama
from caravan.model.cuda.sampler import CudaSampler
from caravan.model.tokenizer.grammar_tokenizer import grammar_tokenizer
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.draft_model import DraftModel
from caravan.scheduler.grammar import Grammars
from caravan.scheduler.messages import Request
from caravan.scheduler.overlapped_engine import OverlappedEngine
from tests.scheduler.requests import make_request
from tests.support.extent import every
from tests.support.fake_device import FakeDevice
from tests.support.fakes import EOS, IM_END, byte_tokenizer
from tests.support.tiny_llama import Transcript, run_to_end, tiny_engine, tiny_llama

pytestmark = [pytest.mark.proofs, pytest.mark.usefixtures("as_on_a_gpu")]

CPU = torch.device("cpu")
# A step of the interpreter takes as long as it has programs.
SHAPE: dict[str, Any] = {
    "vocab_size": 300,  # as many as the grammars' tokenizer has
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_layers": 1,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
}
LETTERS = LLMatcher.grammar_from_regex("[a-z]{3}, [a-z]{3}")


def tiny() -> CudaLlama:
    made = tiny_llama(make_model=lambda config: CudaLlama(config, CPU, "none", fast_matmul=False), **SHAPE)
    assert isinstance(made, CudaLlama)
    return made


def engine(model: CudaLlama, *, has_draft: bool = False) -> tuple[OverlappedEngine, FakeDevice]:
    config = EngineConfig(
        num_blocks=64,
        block_size=16,
        max_num_seqs=4,
        max_model_len=96,
        speculation="on" if has_draft else "off",
        max_draft_model_len=96 if has_draft else 0,
    )
    device = FakeDevice()
    made = OverlappedEngine(
        model,
        config,
        torch.float32,
        CPU,
        CudaSampler(32, SHAPE["vocab_size"], CPU),
        grammars=Grammars(lambda: grammar_tokenizer(byte_tokenizer().resized(300)), 1),
        draft_model=DraftModel(model, config, torch.float32, CPU) if has_draft else None,
        submit=device.submit,
    )
    return made, device


def requests() -> list[Request]:
    """Return requests whose steps can overlap."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 3, "num_logprobs": 5},
        {"temperature": 0.8, "top_p": 0.9, "seed": 4, "num_logprobs": 0},
        {"num_logprobs": 2},
    ]
    return [
        make_request(i, [(7 * i + 3 * j) % 256 for j in range(4 + 5 * i)], max_tokens=8, **params)
        for i, params in enumerate(kinds)
    ]


def alone(model: CudaLlama) -> dict[int, Transcript]:
    """Return what each request gets by itself, in overlapped steps."""
    found: dict[int, Transcript] = {}
    for request in requests():
        made, device = engine(model)
        found |= run_to_end(made, [request])
        assert device.max_queued == 2
    return found


NEIGHBOURS: dict[str, dict[str, Any]] = {
    "a grammar, truncated": {"grammar": LETTERS, "stop_token_ids": (EOS, IM_END), "temperature": 1.0, "top_p": 0.9},
    "a grammar": {"grammar": LETTERS, "stop_token_ids": (EOS, IM_END), "temperature": 1.0},
    "a scored prompt": {"num_prompt_logprobs": 3, "num_logprobs": 3},
    "an embedding": {"pooling": "mean", "max_tokens": 0},
    "many biases": {"logit_bias": dict.fromkeys(range(300), 1.0), "presence_penalty": 1.0},
    "penalties": {"repetition_penalty": 1.5, "presence_penalty": 0.5, "temperature": 0.9},
}


@pytest.fixture(scope="module")
def expected() -> dict[int, Transcript]:
    return {}


@pytest.mark.parametrize("neighbour", every(2, NEIGHBOURS))
def test_beside_a_row_that_needs_the_host_a_request_gets_the_bits_that_it_gets_alone(
    neighbour: str, expected: dict[int, Transcript]
) -> None:
    model = tiny()
    if not expected:
        expected |= alone(model)
    other = make_request(9, list(range(1, 20)), seed=9, **{"max_tokens": 14} | NEIGHBOURS[neighbour])
    made, _ = engine(model)
    found = run_to_end(made, [*requests(), other])
    last = found.pop(9)
    assert (last.error, last.finish_reason) in [(None, "length"), (None, "stop")]
    assert all(one.finish_reason == "length" and len(one.logprobs) == 8 for one in found.values())
    assert found == expected


def test_with_draft_tokens_a_request_gets_the_bits_that_it_gets_alone_and_without(
    expected: dict[int, Transcript],
) -> None:
    """The draft model is the model itself, so that its tokens are right."""
    model = tiny()
    if not expected:
        expected |= alone(model)
    made, device = engine(model, has_draft=True)
    made.warm_up()
    num_accepted: list[int] = []
    text = [5, 6, 7, 8] * 6
    repeating = make_request(9, text, max_tokens=14, logit_bias=dict.fromkeys([5, 6], 90.0))
    found = run_to_end(
        made, [*requests(), repeating], on_step=lambda output: num_accepted.append(output.stats.num_accepted_tokens)
    )
    assert found.pop(9).finish_reason == "length"
    assert found == expected
    assert sum(num_accepted) > 3
    assert device.max_queued == 1


PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.5, "temperature": 0.0},
    {"frequency_penalty": 1.5, "presence_penalty": 0.4},
    {"frequency_penalty": 2.0, "repetition_penalty": 1.2, "temperature": 0.0},
    {"presence_penalty": -1.0, "num_logprobs": 2},
]


def penalized(*others: dict[str, Any]) -> list[Request]:
    """Return requests with penalties, of several lengths, beside others."""
    return [
        make_request(i, [(7 * i + j) % 9 for j in range(3 + 6 * i)], **{"seed": i, "max_tokens": 9 + 2 * i} | params)
        for i, params in enumerate([*PENALTIES, *others])
    ]


def with_device_sampler(**limits: Any) -> tuple[OverlappedEngine, FakeDevice]:
    """Return an engine of a plain model; only its sampler has kernels."""
    model, config = tiny_llama(**SHAPE), EngineConfig(num_blocks=64, max_num_seqs=4, max_model_len=96)
    device = FakeDevice()
    sampler = CudaSampler(4, SHAPE["vocab_size"], CPU)
    config = msgspec.structs.replace(config, **limits)
    return OverlappedEngine(model, config, torch.float32, CPU, sampler, submit=device.submit), device


def tokens(transcripts: dict[int, Transcript]) -> dict[int, list[int]]:
    assert all(one.finish_reason in ("length", "stop") for one in transcripts.values())
    return {request_id: one.token_ids for request_id, one in transcripts.items()}


def test_steps_with_penalties_overlap_and_count_the_tokens_of_the_steps_before() -> None:
    """Rows join, end by a stop token that was not known ahead, and give their places to others."""
    made = penalized({}, PENALTIES[0] | {"stop_token_ids": tuple(range(0, 300, 7))}, PENALTIES[1])
    expected = tokens(run_to_end(tiny_engine(tiny_llama(**SHAPE)), made))
    assert any(max(map(ids.count, ids)) > 2 for ids in expected.values())
    engine, device = with_device_sampler()
    assert tokens(run_to_end(engine, made, arrive_every=2)) == expected
    assert device.max_queued == 2
    assert device.num_runs > 20


def test_counts_start_anew_after_serial_steps_preemptions_and_smaller_chunks() -> None:
    words = {"bad_words": ((1, 2), (3, 4)), "frequency_penalty": 1.0}  # its steps are serial
    made = penalized(words, {})
    expected = tokens(run_to_end(tiny_engine(tiny_llama(**SHAPE)), made))
    engine, device = with_device_sampler(num_blocks=8, block_size=8, max_batch_tokens=11, max_model_len=64)
    num_preemptions: list[int] = []
    found = run_to_end(
        engine, made, arrive_every=3, on_step=lambda step: num_preemptions.append(step.stats.num_preemptions)
    )
    assert tokens(found) == expected
    assert device.max_queued == 2
    assert sum(num_preemptions) > 0


def test_rows_sampled_in_an_overlapped_step_and_in_a_serial_one_share_their_buffers() -> None:
    """Buffers that grow within a step, where nothing may need a gradient, are written outside of one later."""
    model = tiny()
    made, device = engine(model)
    many: dict[str, Any] = {"logit_bias": dict.fromkeys(range(300), 1.0), "max_tokens": 12}
    together = [make_request(i, [i + 1, 2], **many) for i in range(4)]  # 1,200 biases
    assert all(one.finish_reason == "length" for one in run_to_end(made, together).values())
    assert device.max_queued == 2
    other = make_request(5, [1, 2], presence_penalty=1.0, bad_words=((1, 2),))
    assert run_to_end(made, [other])[5].finish_reason == "length"
