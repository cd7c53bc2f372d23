"""Adapters that come and go while an engine runs, over processes that a test controls."""

import asyncio

import pytest

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.messages import (
    AdapterChecked,
    AdapterSource,
    CheckAdapter,
    Request,
    SequenceOutput,
    SetAdapters,
    StartEngine,
    StepOutput,
    StepStats,
)
from caravan.server.engine import client as module
from caravan.server.engine.client import EngineClient
from caravan.server.engine.output_queue import AdapterUnloaded, EngineUnavailable, OutputQueue
from tests.support.fake_process import FakeProcess
from tests.support.waiting import until

POEMS, CODE = (AdapterSource(name=name, path=f"/{name}", digest=name) for name in ("poems", "code"))


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[FakeProcess]:
    monkeypatch.setattr(module, "STANDBY_DELAY_SECONDS", 0.01)
    return FakeProcess.used_by(module, monkeypatch)


async def started(*adapters: AdapterSource, standby: tuple[str, ...] | None = None) -> EngineClient:
    start = StartEngine(model_path="model", adapters=[*adapters])
    client = EngineClient(start, hang_seconds=60, standby_program=standby)
    await client.ready()
    return client


def ask(client: EngineClient, adapter: str) -> OutputQueue:
    return client.submit(Request(prompt_token_ids=[1], params=SamplingParams(max_tokens=9, seed=1), adapter=adapter))


def end(process: FakeProcess, outputs: OutputQueue) -> None:
    last = SequenceOutput(request_id=outputs.request_id, token_ids=[5], finish_reason="stop")
    process.say(StepOutput(outputs=[last], stats=StepStats()))


def last_list(process: FakeProcess) -> list[str] | None:
    """Return the names of the adapters that a process has got last."""
    lists = [message for message in process.sent if isinstance(message, SetAdapters)]
    return [source.name for source in lists[-1].sources] if lists else None


async def test_the_engine_answers_whether_an_adapter_can_be_added(processes: list[FakeProcess]) -> None:
    client = await started()
    for problem in ("", "it has no weights"):
        check = asyncio.create_task(client.adapters.check(POEMS))
        await until(lambda: processes[0].sent[-1:] == [CheckAdapter(source=POEMS)])
        processes[0].say(AdapterChecked(name="other"))
        processes[0].say(AdapterChecked(name="poems", problem=problem))
        assert await check == problem
        processes[0].sent.clear()
    await client.stop()


async def test_a_check_ends_with_its_engine(processes: list[FakeProcess]) -> None:
    client = await started()
    check = asyncio.create_task(client.adapters.check(POEMS))
    await until(lambda: processes[0].sent)
    processes[0].kill()
    with pytest.raises(EngineUnavailable):
        await check
    await client.stop()
    with pytest.raises(EngineUnavailable):
        await client.adapters.check(POEMS)


async def test_an_engine_that_is_started_anew_has_the_adapters_of_now(processes: list[FakeProcess]) -> None:
    client = await started(POEMS)
    assert last_list(processes[0]) is None
    client.adapters.add(CODE)
    client.adapters.remove("poems")
    assert last_list(processes[0]) == ["code"]
    processes[0].kill()
    await until(lambda: client.engine_pid == 2 and client.is_ready)
    assert processes[1].start.adapters == [CODE]
    await client.stop()


async def test_a_standby_of_an_earlier_time_gets_the_list_before_requests(processes: list[FakeProcess]) -> None:
    client = await started(standby=("standby",))
    await until(lambda: len(processes) == 2)
    processes[1].has_loaded.set()
    await until(client.is_standby_ready)
    client.adapters.add(CODE)
    outputs = ask(client, "code")
    processes[0].kill()
    await until(lambda: client.engine_pid == 2 and client.is_ready)
    assert processes[1].start.adapters == []
    assert [type(message) for message in processes[1].sent] == [SetAdapters, Request]
    assert last_list(processes[1]) == ["code"]
    await until(lambda: len(processes) == 3)
    assert processes[2].start.adapters == [CODE]
    end(processes[1], outputs)
    await client.stop()


async def test_a_removed_adapter_stays_until_its_last_request_ends_also_in_another_engine(
    processes: list[FakeProcess],
) -> None:
    client = await started(POEMS, CODE)
    first, second, other = ask(client, "poems"), ask(client, "poems"), ask(client, "code")
    client.adapters.remove("poems")
    with pytest.raises(AdapterUnloaded):
        ask(client, "poems")
    assert client.adapters.names == {"poems", "code"}
    end(processes[0], first)
    assert last_list(processes[0]) is None
    processes[0].kill()
    await until(lambda: client.engine_pid == 2 and client.is_ready)
    assert processes[1].start.adapters == [POEMS, CODE]
    assert {message.request_id for message in processes[1].sent if isinstance(message, Request)} == {
        second.request_id,
        other.request_id,
    }
    second.abort()
    assert last_list(processes[1]) == ["code"]
    assert client.adapters.names == {"code"}
    await client.stop()


async def test_an_unknown_adapter_never_reaches_the_engine(processes: list[FakeProcess]) -> None:
    client = await started(POEMS)
    with pytest.raises(AdapterUnloaded):
        ask(client, "prose")
    assert processes[0].sent == []
    await client.stop()
