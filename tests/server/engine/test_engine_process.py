"""EngineProcess: reports of the engine, and a process that does not end by itself."""

import asyncio

import pytest

from caravan.scheduler.channel import encode_frame
from caravan.scheduler.messages import Abort, EngineFailed, EngineLoaded, Heartbeat, StartEngine, WhileRunning
from caravan.server.engine import process as module
from caravan.server.engine.process import EngineProcess, EngineStartFailed, engine_environment
from tests.support.engine_reports import READY

SLEEPS = ("-c", "import time; time.sleep(60)")
WAITS = ("-c", "import socket, sys; socket.socket(fileno=int(sys.argv[1])).makefile('rb').read()")


def started(program: tuple[str, ...], messages: list[WhileRunning]) -> EngineProcess:
    return EngineProcess(StartEngine(model_path="model"), messages.append, program)


async def test_messages_after_the_report_are_passed_on_until_the_process_ends() -> None:
    messages: list[WhileRunning] = []
    process = started(WAITS, messages)
    ready = asyncio.create_task(process.ready())
    await asyncio.sleep(0.05)
    process.data_received(encode_frame(READY)[:5])
    process.data_received(encode_frame(READY)[5:] + encode_frame(Heartbeat()))
    assert await ready == READY
    process.data_received(encode_frame(READY) + encode_frame(EngineFailed(reason="late")))  # ignored
    assert messages == [Heartbeat()]
    process.send(Abort(request_id=1))
    assert await process.stop() == "exit status 0"
    process.send(Abort(request_id=2))  # dropped
    await asyncio.wait_for(process.ended(), 60)


@pytest.mark.parametrize("is_permanent", [False, True])
async def test_a_failure_to_load_is_the_reason_of_the_engine(is_permanent: bool) -> None:
    process = started(WAITS, [])
    ready = asyncio.create_task(process.ready())
    await asyncio.sleep(0.05)
    process.data_received(encode_frame(EngineFailed(reason="There is not enough memory.", is_permanent=is_permanent)))
    with pytest.raises(EngineStartFailed, match=r"^There is not enough memory\.$") as failed:
        await ready
    assert failed.value.is_permanent == is_permanent
    await process.stop()


async def test_a_standby_that_does_not_load_in_time_cannot_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOADING_SECONDS", 0.1)
    process = started(WAITS, [])
    with pytest.raises(TimeoutError):
        await process.take_over(60)
    await process.stop()


async def test_a_standby_may_take_as_long_to_take_over_as_it_sends_heartbeats() -> None:
    process = started(WAITS, [])
    report = asyncio.create_task(process.take_over(0.2))
    await asyncio.sleep(0.05)
    process.data_received(encode_frame(EngineLoaded()))
    for _ in range(10):
        await asyncio.sleep(0.1)
        process.data_received(encode_frame(Heartbeat()))
    assert not report.done()
    process.data_received(encode_frame(READY))
    assert await report == READY
    await process.stop()


async def test_a_standby_that_becomes_silent_cannot_take_over() -> None:
    process = started(WAITS, [])
    report = asyncio.create_task(process.take_over(0.1))
    await asyncio.sleep(0.05)
    process.data_received(encode_frame(EngineLoaded()) + encode_frame(Heartbeat()))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(report, 60)
    await process.stop()


async def test_a_process_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 0.05)
    assert await started(SLEEPS, []).stop() == "signal 9"


async def test_a_killed_process_has_ended() -> None:
    process = started(WAITS, [])
    ready = asyncio.create_task(process.ready())
    await asyncio.sleep(0.05)
    process.kill()
    with pytest.raises(EngineStartFailed, match=r"ended while it loaded the model \(signal 9\)"):
        await ready
    await asyncio.wait_for(process.ended(), 60)


def test_variables_that_are_set_have_priority_over_defaults() -> None:
    environ = engine_environment({"GOMP_SPINCOUNT": "7", "PATH": "/bin"})
    assert environ == {"GOMP_SPINCOUNT": "7", "PATH": "/bin", "THP_MEM_ALLOC_ENABLE": "1"}
