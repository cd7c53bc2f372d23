"""A standby that takes over from an engine, over processes that a test controls and over scripted ones."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator

import pytest

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.messages import EngineLog, Heartbeat, Request, StartEngine
from caravan.server.engine import client as module
from caravan.server.engine import standby as standby_module
from caravan.server.engine.client import EngineClient
from caravan.server.engine.output_queue import OutputQueue
from caravan.server.engine.standby import Standby
from tests.support.engine_reports import READY
from tests.support.fake_process import FakeProcess
from tests.support.running_server import is_alive
from tests.support.scripted_engine import DIES, token_at
from tests.support.waiting import until

NUM_TOKENS = 60
STANDBY = ("standby",)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[FakeProcess]:
    monkeypatch.setattr(module, "STANDBY_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(standby_module, "FIRST_PAUSE_SECONDS", 0.01)
    return FakeProcess.used_by(module, monkeypatch)


async def started() -> tuple[EngineClient, Standby]:
    client = EngineClient(StartEngine(model_path="model"), hang_seconds=60, standby_program=STANDBY, name="model")
    assert await client.ready() == READY
    assert client.standby is not None
    return client, client.standby


def request() -> Request:
    return Request(prompt_token_ids=[1, 2], params=SamplingParams(max_tokens=9, seed=1))


async def test_a_standby_is_started_behind_each_engine_and_takes_over(processes: list[FakeProcess]) -> None:
    client, standby = await started()
    await until(lambda: len(processes) == 2)
    assert processes[1].program == STANDBY
    assert not standby.is_ready
    processes[1].has_loaded.set()
    await until(client.is_standby_ready)
    client.submit(request())
    processes[0].kill()
    await until(lambda: client.engine_pid == 2 and client.is_ready)
    assert processes[1].is_taking_over
    assert [type(message) for message in processes[1].sent] == [Request]
    await until(lambda: len(processes) == 3)
    assert processes[2].program == STANDBY
    assert not standby.is_ready
    assert processes[2].start.limits.kv_cache_memory_bytes == READY.kv_cache_bytes
    await client.stop()
    assert [process.num_stops for process in processes] == [1, 1, 1]


async def test_a_standby_that_is_still_loading_takes_over_when_it_has_loaded(processes: list[FakeProcess]) -> None:
    client, _ = await started()
    await until(lambda: len(processes) == 2)
    processes[0].kill()
    await until(lambda: processes[1].is_taking_over)
    assert not client.is_ready
    processes[1].has_loaded.set()
    await until(lambda: client.engine_pid == 2 and client.is_ready)
    await client.stop()


async def test_a_standby_that_fails_is_replaced_and_the_engine_works_on(
    processes: list[FakeProcess], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = await started()
    monkeypatch.setattr(FakeProcess, "fails_to_start", True)
    await until(lambda: len(processes) == 4)
    monkeypatch.setattr(FakeProcess, "fails_to_start", False)
    assert "The standby failed; starting another one in 0.01 seconds: no memory" in caplog.text
    assert "starting another one in 0.02 seconds: no memory" in caplog.text
    await until(lambda: len(processes) == 5)
    processes[4].has_loaded.set()
    await until(client.is_standby_ready)
    processes[4].kill()
    await until(lambda: len(processes) == 6)
    assert "starting another one in 0.08 seconds: The process ended." in caplog.text
    assert [process.num_stops for process in processes] == [0, 1, 1, 1, 1, 0]
    assert client.engine_pid == 1
    assert client.is_ready
    await client.stop()


async def test_a_failed_standby_is_waited_for_while_another_engine_starts(
    processes: list[FakeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = await started()
    await until(lambda: len(processes) == 2)
    may_end, ended = asyncio.Event(), list[int]()

    async def stop(process: FakeProcess) -> str:
        if process.pid == 2:
            await may_end.wait()
        ended.append(process.pid)
        return "signal 9"

    monkeypatch.setattr(FakeProcess, "stop", stop)
    processes[1].has_loaded.set()
    await until(client.is_standby_ready)
    processes[1].kill()
    await until(lambda: not client.is_standby_ready())
    processes[0].kill()
    await until(lambda: client.engine_pid == 3 and client.is_ready)
    assert ended == [1]
    may_end.set()
    await client.stop()
    assert {1, 2, 3} <= {*ended}


async def test_the_log_of_a_standby_is_logged_and_its_messages_are_no_sign_of_life(
    processes: list[FakeProcess], caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = await started()
    await until(lambda: len(processes) == 2)
    heard_at_seconds = client._silence._heard_at_seconds
    processes[1].say(EngineLog(level=logging.WARNING, text="the kernels are built"))
    processes[1].say(Heartbeat())
    assert client._silence._heard_at_seconds == heard_at_seconds
    assert [record.getMessage() for record in caplog.records] == ["Standby: the kernels are built"]
    assert [vars(record)["model"] for record in caplog.records] == ["model"]
    await client.stop()


async def test_a_standby_that_cannot_take_over_is_killed_and_an_engine_is_started(
    processes: list[FakeProcess], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = await started()
    await until(lambda: len(processes) == 2)
    processes[1].has_loaded.set()
    await until(client.is_standby_ready)

    async def never(_: FakeProcess, _timeout_seconds: float) -> None:
        raise TimeoutError

    monkeypatch.setattr(FakeProcess, "take_over", never)
    processes[0].kill()
    await until(lambda: client.engine_pid == 3 and client.is_ready)
    assert processes[1].is_killed
    assert processes[2].program != STANDBY
    assert "The standby cannot take over: It does not respond." in caplog.text
    await client.stop()


@pytest.fixture
async def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EngineClient]:
    """A client of scripted engines whose standby takes `request.param` seconds to load."""
    monkeypatch.setattr(module, "STANDBY_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(standby_module, "FIRST_PAUSE_SECONDS", 0.01)
    program = ("-m", "tests.support.scripted_engine", "0.01")
    client = EngineClient(
        StartEngine(model_path=""), program, hang_seconds=1.5, standby_program=(*program, str(request.param))
    )
    await client.ready()
    yield client
    await client.stop()


def ask(client: EngineClient, prompt: list[int]) -> OutputQueue:
    return client.submit(Request(prompt_token_ids=prompt, params=SamplingParams(max_tokens=NUM_TOKENS, seed=1)))


async def answer(stream: OutputQueue) -> list[int]:
    """Return all tokens of a stream; raises what ended it too early."""
    tokens: list[int] = []
    has_output = asyncio.Event()
    stream.on_output = has_output.set
    while True:
        output = stream.take()
        if output is None:
            has_output.clear()
            await asyncio.wait_for(has_output.wait(), 60)
            continue
        tokens += output.token_ids
        if output.finish_reason is not None:
            assert output.finish_reason == "length", output.error
            return tokens


def expected(prompt: list[int]) -> list[int]:
    return [token_at(prompt, position) for position in range(NUM_TOKENS)]


async def standby_pid(client: EngineClient) -> int:
    """Return the process id of the standby when it has loaded."""
    standby = client.standby
    assert standby is not None
    await until(client.is_standby_ready)
    assert standby._process is not None
    return standby._process.pid


@pytest.mark.slow
@pytest.mark.parametrize("client", [0.0], indirect=True)
@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
async def test_streams_continue_when_a_standby_takes_over(client: EngineClient, harm: signal.Signals) -> None:
    prompts = [[100 + index] for index in range(8)]
    answers = [asyncio.create_task(answer(ask(client, prompt))) for prompt in prompts]
    for _ in range(2):
        pid = await standby_pid(client)
        os.kill(client.engine_pid, harm)
        await until(lambda pid=pid: client.engine_pid == pid and client.is_ready)
    assert await asyncio.gather(*answers) == [expected(prompt) for prompt in prompts]


@pytest.mark.slow
@pytest.mark.parametrize("client", [1.0], indirect=True)
async def test_streams_continue_when_a_standby_is_killed_or_still_loading(client: EngineClient) -> None:
    standby = client.standby
    assert standby is not None
    stream = asyncio.create_task(answer(ask(client, [100])))
    await until(lambda: standby._process is not None)
    loading = standby._process
    assert loading is not None
    os.kill(loading.pid, signal.SIGKILL)
    await until(lambda: standby._process not in (None, loading))
    following = standby._process
    assert following is not None
    os.kill(client.engine_pid, signal.SIGKILL)
    await until(lambda: client.engine_pid == following.pid and client.is_ready)
    assert await stream == expected([100])


@pytest.mark.slow
@pytest.mark.parametrize("client", [0.0], indirect=True)
@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
async def test_streams_continue_when_both_processes_fail_at_once(client: EngineClient, harm: signal.Signals) -> None:
    stream = asyncio.create_task(answer(ask(client, [100])))
    pids = [await standby_pid(client), client.engine_pid]
    for pid in pids:
        os.kill(pid, harm)
    await until(lambda: client.engine_pid not in pids and client.is_ready)
    assert await stream == expected([100])
    assert not any(map(is_alive, pids))


@pytest.mark.slow
@pytest.mark.parametrize("client", [0.0], indirect=True)
async def test_threat_18_a_request_that_crashes_every_standby_fails_and_others_do_not(client: EngineClient) -> None:
    prompts = [[100 + index] for index in range(3)]
    answers = [asyncio.create_task(answer(ask(client, prompt))) for prompt in prompts]
    await asyncio.sleep(0.05)
    with pytest.raises(AssertionError, match="crashed 5 times in a row"):
        await answer(ask(client, [DIES]))
    assert await asyncio.gather(*answers) == [expected(prompt) for prompt in prompts]


@pytest.mark.slow
@pytest.mark.parametrize("client", [0.0, 30.0], indirect=True, ids=["waiting", "loading"])
async def test_a_standby_ends_with_the_client(client: EngineClient) -> None:
    standby = client.standby
    assert standby is not None
    await until(lambda: standby._process is not None)
    process = standby._process
    assert process is not None
    await client.stop()
    assert not is_alive(process.pid)
