"""Generation: the deltas of several choices, in the order in which their readers can use them."""

import asyncio

import pytest

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import FinishReason, Request, SequenceOutput
from caravan.server.engine.client import EngineState
from caravan.server.engine.output_queue import EngineDied, OutputQueue
from caravan.server.generation.admission import Admission
from caravan.server.generation.context import RequestContext
from caravan.server.generation.errors import GenerationFailed
from caravan.server.generation.generation import Generation
from caravan.server.generation.prompt_job import PromptJob
from caravan.server.generation.served_model import ServedModel
from caravan.server.observe.metrics import Metrics
from tests.support.fakes import byte_tokenizer


class HandEngine:
    """An engine whose outputs the test puts into the streams itself."""

    is_ready = True
    fingerprint = ""
    report = None
    state: EngineState = "loaded"
    config = EngineConfig(num_blocks=64, max_model_len=512)

    def __init__(self) -> None:
        self.streams: list[OutputQueue] = []
        self.aborted: list[int] = []

    def submit(self, request: Request, crash_group: int = 0) -> OutputQueue:
        self.streams.append(OutputQueue(len(self.streams), self.aborted.append))
        return self.streams[-1]

    def subscribe(self, period_seconds: float) -> None:
        raise AssertionError("nobody subscribes")

    def say(self, index: int, text: str, *, ends: bool = False) -> None:
        reason: FinishReason | None = "length" if ends else None
        self.streams[index].put(SequenceOutput(request_id=index, token_ids=list(text.encode()), finish_reason=reason))


async def generation_of(engine: HandEngine, num_choices: int) -> Generation:
    metrics = Metrics("fake", engine.config)
    served = ServedModel(
        name="fake",
        max_model_len=512,
        engine=engine,
        tokenizer=byte_tokenizer(),
        chat_template=None,
        metrics=metrics,
        admission=Admission(engine.config, metrics),
    )
    job = PromptJob(token_ids=[1], params=[SamplingParams(seed=0, max_tokens=9)] * num_choices)
    generation = Generation(served, [job], RequestContext(), answer_id="cmpl-1")
    await generation.start()
    return generation


async def next_texts(generation: Generation) -> list[tuple[int, str]]:
    deltas = await asyncio.wait_for(generation.next_deltas(), 60)
    return [(index, delta.text) for index, delta in deltas]


async def test_deltas_of_several_choices_are_returned_together_and_joined_by_choice() -> None:
    engine = HandEngine()
    generation = await generation_of(engine, 3)
    waiting = asyncio.create_task(next_texts(generation))
    await asyncio.sleep(0)
    engine.say(2, "c")
    engine.say(0, "a")
    engine.say(0, "aa")
    assert await waiting == [(0, "aaa"), (2, "c")]
    engine.say(1, "b", ends=True)
    assert await next_texts(generation) == [(1, "b")]
    was_finished = generation.is_finished
    engine.say(0, "", ends=True)
    engine.say(2, "", ends=True)
    assert await next_texts(generation) == [(0, ""), (2, "")]
    assert (was_finished, generation.is_finished) == (False, True)
    assert generation.usage()["completion_tokens"] == 5


async def test_deltas_of_other_choices_before_an_error_are_not_lost() -> None:
    engine = HandEngine()
    generation = await generation_of(engine, 3)
    engine.say(0, "a")
    engine.streams[1].fail(EngineDied())
    assert await next_texts(generation) == [(0, "a")]
    for _ in range(2):
        with pytest.raises(EngineDied):
            await next_texts(generation)
    generation.end()
    assert engine.aborted == [0, 2]
    assert generation.record.finish_reasons() == ["error"] * 3  # no client left


async def test_deltas_after_a_cancelled_wait_are_returned_by_the_next_one() -> None:
    engine = HandEngine()
    generation = await generation_of(engine, 1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(generation.next_deltas(), 0.01)
    engine.say(0, "a")
    assert await next_texts(generation) == [(0, "a")]


async def test_an_end_follows_the_tokens_of_the_same_step() -> None:
    engine = HandEngine()
    generation = await generation_of(engine, 1)
    engine.say(0, "a")
    engine.streams[0].fail(EngineDied())
    assert await next_texts(generation) == [(0, "a")]
    with pytest.raises(EngineDied):
        await next_texts(generation)


async def test_an_error_of_one_row_follows_its_last_tokens() -> None:
    engine = HandEngine()
    generation = await generation_of(engine, 1)
    engine.say(0, "a")
    engine.say(0, "b")
    engine.streams[0].put(SequenceOutput(request_id=0, token_ids=[], finish_reason="error", error="not finite"))
    assert await next_texts(generation) == [(0, "ab")]
    assert generation.usage()["completion_tokens"] == 2
    with pytest.raises(GenerationFailed, match="not finite"):
        await next_texts(generation)
