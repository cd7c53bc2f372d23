"""Repetitions: a choice that repeats a pattern of tokens ends, at the same token however it is computed."""

import random

import msgspec
import pytest

from caravan.model.sampling.sampling_params import Repetition
from caravan.scheduler.messages import SequenceOutput
from caravan.scheduler.repetition import RepetitionDetector
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import engine_of, random_prompt
from tests.support.tiny_llama import run_to_end


def is_repeated(text: list[int], rule: Repetition) -> bool:
    """Return the same as the detector, by the definition."""
    sizes = range(rule.min_size, rule.max_size + 1)
    return any(
        len(text) >= size * rule.min_count and text[-size * rule.min_count :] == text[-size:] * rule.min_count
        for size in sizes
    )


@pytest.mark.parametrize("rule", [Repetition(1, 4, 3), Repetition(2, 3, 2), Repetition(1, 1, 5)])
def test_the_detector_follows_the_definition(rule: Repetition) -> None:
    generator = random.Random(3)
    num_found = 0
    for _ in range(300):
        text = generator.choices(range(2), k=30)
        detector = RepetitionDetector(rule)
        for end in range(len(text) + 1):
            found = detector.repeats([7, 7, 7, *text[:end]], 3)
            assert found == (end > 0 and is_repeated(text[:end], rule))
            num_found += found
    assert num_found > 100


def test_a_prompt_is_no_repetition() -> None:
    assert not RepetitionDetector(Repetition(1, 2, 2)).repeats([5, 5, 5, 5], 4)


@pytest.mark.parametrize("kind", ["float32", "float32, overlapped"])
def test_a_choice_ends_with_its_first_repetition(kind: str) -> None:
    rule = Repetition(1, 3, 2)
    request = make_request(0, random_prompt(0, 10), max_tokens=30, bad_words=(), allowed_token_ids=(4, 9), seed=1)
    free = run_to_end(engine_of(kind, block_size=16, max_model_len=96), [request])[0].token_ids
    expected = next(end for end in range(1, 31) if is_repeated(free[:end], rule))
    ruled = msgspec.structs.replace(request, params=msgspec.structs.replace(request.params, repetition=rule))
    for cut in (0, 1):
        engine = engine_of(kind, block_size=16, max_model_len=96)
        engine.add(msgspec.structs.replace(ruled, output_token_ids=free[:cut]))
        outputs: list[SequenceOutput] = []
        while engine.has_work:
            outputs += engine.step().outputs
        assert free[:cut] + [token for output in outputs for token in output.token_ids] == free[:expected]
        assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", "repetition")
        assert {output.stop_reason for output in outputs[:-1]} <= {""}
