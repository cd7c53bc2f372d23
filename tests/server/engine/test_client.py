"""EngineClient with engine processes that crash and hang: all streams continue."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable

import pytest
from typing_extensions import override

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.messages import Request, StartEngine
from caravan.server.engine.client import EngineClient
from caravan.server.engine.listener import EngineListener
from caravan.server.engine.output_queue import EngineDied, OutputQueue
from tests.support.scripted_engine import DIES, DIES_LATE, HANGS, token_at
from tests.support.waiting import until

pytestmark = pytest.mark.slow

NUM_TOKENS = 60

GenerationResponse = tuple[list[int], int]  # its tokens, and how many log-probabilities of its prompt came


@pytest.fixture
async def client() -> AsyncIterator[EngineClient]:
    program = ("-m", "tests.support.scripted_engine", "0.01")
    client = EngineClient(StartEngine(model_path=""), program, hang_seconds=1.5)
    await client.ready()
    yield client
    await client.stop()


def ask(client: EngineClient, prompt: list[int]) -> OutputQueue:
    return client.submit(
        Request(prompt_token_ids=prompt, params=SamplingParams(max_tokens=NUM_TOKENS, seed=1, num_prompt_logprobs=0))
    )


async def answer(stream: OutputQueue) -> GenerationResponse:
    """Return all of a stream; raises what ended it too early."""
    tokens: list[int] = []
    num_scores = 0
    has_output = asyncio.Event()
    stream.on_output = has_output.set
    while True:
        output = stream.take()
        if output is None:
            has_output.clear()
            await asyncio.wait_for(has_output.wait(), 60)
            continue
        tokens += output.token_ids
        num_scores += len(output.prompt_logprobs)
        if output.finish_reason is not None:
            assert output.finish_reason == "length", output.error
            return tokens, num_scores


def expected(prompt: list[int]) -> GenerationResponse:
    return [token_at(prompt, position) for position in range(NUM_TOKENS)], len(prompt) - 1


async def restarted(client: EngineClient) -> None:
    await until(lambda: client.is_ready)


def kill(client: EngineClient) -> None:
    os.kill(client.engine_pid, signal.SIGKILL)


def stop(client: EngineClient) -> None:
    os.kill(client.engine_pid, signal.SIGSTOP)


@pytest.mark.parametrize("harm", [kill, stop])
async def test_streams_continue_when_the_engine_is_killed_or_stopped(
    client: EngineClient, harm: Callable[[EngineClient], None]
) -> None:
    prompts = [[100 + index, *range(index + 1)] for index in range(8)]
    answers = [asyncio.create_task(answer(ask(client, prompt))) for prompt in prompts]
    replays: list[tuple[int, float]] = []

    class Listener(EngineListener):
        @override
        def on_replay(self, num_requests: int, down_seconds: float) -> None:
            replays.append((num_requests, down_seconds))

    client.listener = Listener()
    for pause_seconds in (0.05, 0.2, 0.0):
        await asyncio.sleep(pause_seconds)
        pid = client.engine_pid
        harm(client)
        await until(lambda pid=pid: client.engine_pid != pid)
        await restarted(client)
    assert await asyncio.gather(*answers) == [expected(prompt) for prompt in prompts]
    assert len(replays) == 3
    assert replays[0][0] == 8
    assert all(0 < down_seconds < 10 for _, down_seconds in replays)


@pytest.mark.timing
async def test_threat_17_a_stopped_engine_is_noticed_within_two_seconds_also_when_busy(client: EngineClient) -> None:
    stream = ask(client, [100])
    await asyncio.sleep(0.1)
    stop(client)
    began = time.monotonic()
    client._hang_seconds = 60
    await until(lambda: not client.is_ready)
    assert time.monotonic() - began < 2.2
    os.kill(client.engine_pid, signal.SIGCONT)
    await until(lambda: client.is_ready)
    assert await answer(stream) == expected([100])


async def test_requests_that_arrive_while_the_engine_is_silent_or_replaced_wait_for_it(
    client: EngineClient, caplog: pytest.LogCaptureFixture
) -> None:
    late: list[OutputQueue] = []
    num_logged: list[int] = []

    class Listener(EngineListener):
        @override
        def on_disconnect(self) -> None:
            late.append(ask(client, [101]))
            num_logged.append(sum("its requests wait" in record.getMessage() for record in caplog.records))

    client.listener = Listener()
    client._hang_seconds = 3
    stop(client)
    silent = ask(client, [100])
    assert await answer(silent) == expected([100])
    assert await answer(late[0]) == expected([101])
    client.listener = EngineListener()
    assert num_logged[0] == 1, "once, although it was silent for a second more"


@pytest.mark.parametrize("poison", [DIES, HANGS])
async def test_threat_18_a_request_that_crashes_every_engine_fails_and_others_do_not(
    client: EngineClient, poison: int
) -> None:
    prompts = [[100 + index] for index in range(3)]
    answers = [asyncio.create_task(answer(ask(client, prompt))) for prompt in prompts]
    await asyncio.sleep(0.05)
    with pytest.raises(AssertionError, match="crashed 5 times in a row"):
        await answer(ask(client, [poison]))
    assert await asyncio.gather(*answers) == [expected(prompt) for prompt in prompts]


async def test_a_request_that_gets_tokens_between_crashes_completes(client: EngineClient) -> None:
    stream = client.submit(Request(prompt_token_ids=[DIES_LATE], params=SamplingParams(max_tokens=9, seed=1)))
    tokens, _ = await answer(stream)
    assert tokens == [token_at([DIES_LATE], position) for position in range(9)]


async def test_a_request_that_waits_for_an_engine_can_be_dropped(client: EngineClient) -> None:
    streams = [ask(client, [100]), ask(client, [101])]
    ends: list[float] = []

    class Listener(EngineListener):
        @override
        def on_disconnect(self) -> None:
            ends.append(time.monotonic())

    client.listener = Listener()
    await asyncio.sleep(0.05)
    kill(client)
    await until(lambda: not client.is_ready)
    await until(lambda: len(ends) == 1)
    streams[0].abort()
    assert await answer(streams[1]) == expected([101])


async def test_stopping_the_client_ends_the_streams(client: EngineClient) -> None:
    stream = ask(client, [100])
    await client.stop()
    with pytest.raises(EngineDied):
        await answer(stream)


async def test_a_blocked_event_loop_does_not_count_as_engine_silence(client: EngineClient) -> None:
    pid = client.engine_pid
    stream = ask(client, [100])
    await asyncio.sleep(0.05)
    time.sleep(2.0)  # noqa: ASYNC251  the event loop stands still for longer than an engine may be silent
    assert await answer(stream) == expected([100])
    assert client.engine_pid == pid


async def test_threat_29_a_late_event_loop_does_not_restart_a_healthy_engine(client: EngineClient) -> None:
    for _ in range(3):
        await asyncio.sleep(0.3)
        time.sleep(2.5)  # noqa: ASYNC251  as a text does that is tokenized on the loop
        assert client.is_ready  # before anything else runs, so also before what the engine said is read
        assert await answer(ask(client, [100])) == expected([100])


@pytest.mark.timing
async def test_threat_29_a_late_event_loop_still_detects_a_stopped_engine(
    client: EngineClient,
) -> None:
    client._hang_seconds = 60
    await asyncio.sleep(0.3)
    stop(client)
    time.sleep(2.5)  # noqa: ASYNC251
    began = time.monotonic()
    await until(lambda: not client.is_ready)
    assert time.monotonic() - began < 2.7
    os.kill(client.engine_pid, signal.SIGCONT)
    await restarted(client)
