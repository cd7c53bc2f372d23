"""EngineSwaps over processes that a test controls: which engines are loaded, in which order, and who waits."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
from typing_extensions import override

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.messages import EngineReady, Request, SequenceOutput, StartEngine, StepOutput, StepStats
from caravan.server.batches.line_app import LINE_URGENCY
from caravan.server.engine import client as client_module
from caravan.server.engine import engine_swaps, swapped_engine
from caravan.server.engine.client import EngineClient
from caravan.server.engine.engine_swaps import EngineSwaps
from caravan.server.engine.listener import EngineListener
from caravan.server.engine.output_queue import EngineDied, EngineUnavailable, ModelLoadFailed, OutputQueue
from caravan.server.engine.process import EngineEndedEarly, EngineStartFailed
from caravan.server.engine.swapped_engine import SwappedEngine, expected_load_seconds
from tests.support.engine_reports import READY
from tests.support.fake_process import FakeProcess
from tests.support.waiting import until


class LoadingProcess(FakeProcess):
    """A process that loads when the test lets it."""

    may_load: asyncio.Event
    errors: list[Exception]  # of the next loads

    @override
    async def ready(self) -> EngineReady:
        await self.may_load.wait()
        if self.errors:
            raise self.errors.pop(0)
        return READY


class Sleeps(EngineListener):
    """Counts how often an engine was loaded and put to sleep."""

    def __init__(self) -> None:
        self.num_loads = 0
        self.num_sleeps = 0

    @override
    def on_wake(self, load_seconds: float) -> None:
        self.num_loads += 1

    @override
    def on_sleep(self) -> None:
        self.num_sleeps += 1


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[FakeProcess]:
    monkeypatch.setattr(client_module, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(engine_swaps, "WAITING_PERIOD_SECONDS", 0.002)
    monkeypatch.setattr(engine_swaps, "IDLE_PERIOD_SECONDS", 0.002)
    made = LoadingProcess.used_by(client_module, monkeypatch)
    monkeypatch.setattr(LoadingProcess, "may_load", asyncio.Event(), raising=False)
    monkeypatch.setattr(LoadingProcess, "errors", [], raising=False)
    LoadingProcess.may_load.set()
    return made


@asynccontextmanager
async def swapping(
    *needs: int, budget: int | None = None, sleep_after: float | None = None
) -> AsyncIterator[EngineSwaps]:
    """Run engines a, b, c, ... with these needs."""
    engines = [
        SwappedEngine(
            name=name,
            client=EngineClient(StartEngine(model_path=name), hang_seconds=60, is_asleep=True, name=name),
            need_bytes=need,
            load_seconds=0.01,
            sleep_after_seconds=sleep_after,
        )
        for name, need in zip("abcdef", needs, strict=False)
    ]
    for engine in engines:
        engine.client.listener = Sleeps()
    swaps = EngineSwaps(engines, budget)
    swaps.start()
    yield swaps
    await swaps.stop()


@pytest.fixture
async def rivals(processes: list[FakeProcess]) -> AsyncIterator[EngineSwaps]:
    """Two engines with memory for one."""
    async with swapping(1, 1, budget=1) as swaps:
        yield swaps


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that sets the shortest turn in seconds."""
    return partial(monkeypatch.setattr, swapped_engine, "MIN_TURN_SECONDS")


def ask(engine: SwappedEngine, urgency: int = 0) -> OutputQueue:
    params = SamplingParams(max_tokens=9, seed=1)
    return engine.client.submit(Request(prompt_token_ids=[1], params=params, urgency=urgency))


def ask_for_line(engine: SwappedEngine) -> OutputQueue:
    return ask(engine, LINE_URGENCY)


def end(engine: SwappedEngine, outputs: OutputQueue) -> None:
    """Let the process of an engine send the last token of a request."""
    output = SequenceOutput(request_id=outputs.request_id, token_ids=[7], finish_reason="length")
    process: object = engine.client._process
    assert isinstance(process, FakeProcess)
    process.say(StepOutput(outputs=[output], stats=StepStats()))


def requests_sent_to(engine: SwappedEngine) -> list[int]:
    process: object = engine.client._process
    assert isinstance(process, FakeProcess)
    return [message.request_id for message in process.sent if isinstance(message, Request)]


async def started(engine: SwappedEngine, urgency: int = 0) -> OutputQueue:
    """Load an engine with a request and return it."""
    outputs = ask(engine, urgency)
    await until(lambda: state_of(engine) == "loaded")
    return outputs


async def used(engine: SwappedEngine) -> None:
    """Load an engine and let it answer a request."""
    end(engine, await started(engine))


def state_of(engine: SwappedEngine) -> str:
    return engine.client.state


def states(swaps: EngineSwaps) -> list[str]:
    return [engine.client.state for engine in swaps.engines]


async def test_two_requests_at_once_wake_one_process_which_gets_both(processes: list[FakeProcess]) -> None:
    async with swapping(1, 1) as swaps:
        engine, _ = swaps.engines
        assert state_of(engine) == "asleep"
        assert engine.client.is_ready
        LoadingProcess.may_load.clear()
        first, second = ask(engine), ask(engine)
        await until(lambda: bool(processes))
        assert state_of(engine) == "loading"
        third = ask(engine)
        LoadingProcess.may_load.set()
        await until(lambda: state_of(engine) == "loaded")
        assert len(processes) == 1
        assert requests_sent_to(engine) == [first.request_id, second.request_id, third.request_id]
        assert states(swaps) == ["loaded", "asleep"]


async def test_the_least_recently_used_idle_engine_sleeps_first(processes: list[FakeProcess]) -> None:
    async with swapping(1, 1, 1, 1, budget=3) as swaps:
        a, b, c, d = swaps.engines
        for engine in (a, b, c, a):
            await used(engine)
        await used(d)
        assert states(swaps) == ["loaded", "asleep", "loaded", "loaded"]
        await used(b)
        assert states(swaps) == ["loaded", "loaded", "asleep", "loaded"]
        assert swaps.used_bytes == 3
        assert len(processes) == 5


async def test_an_engine_sleeps_only_if_that_makes_enough_room(processes: list[FakeProcess]) -> None:
    async with swapping(1, 2, 3, budget=3) as swaps:
        a, b, c = swaps.engines
        await used(a)
        running = await started(b)
        waiting = ask(c)
        await asyncio.sleep(0.03)
        assert states(swaps) == ["loaded", "loaded", "asleep"]
        end(b, running)
        await until(lambda: state_of(c) == "loaded")
        assert requests_sent_to(c) == [waiting.request_id]
        assert states(swaps) == ["asleep", "asleep", "loaded"]
        assert len(processes) == 3


async def test_a_busy_engine_has_to_go_after_a_turn_and_its_later_requests_wait_for_the_next_one(
    rivals: EngineSwaps, turns: Callable[[float], None], processes: list[FakeProcess]
) -> None:
    turns(0.05)
    a, b = rivals.engines
    running = await started(a)
    waiting = ask(b)
    more = [ask(a)]
    assert requests_sent_to(a) == [running.request_id, more[0].request_id], "before the turn is over"
    await until(lambda: a.client.is_postponing)
    late, left = ask(a), ask(a)
    left.abort()
    assert requests_sent_to(a) == [running.request_id, more[0].request_id]
    assert rivals.forecast_seconds(a) > 0
    end(a, running)
    await asyncio.sleep(0.02)
    assert states(rivals) == ["loaded", "asleep"], "one is still running"
    end(a, more[0])
    await until(lambda: state_of(b) == "loaded")
    assert requests_sent_to(b) == [waiting.request_id]
    assert states(rivals) == ["asleep", "loaded"]
    end(b, waiting)
    await until(lambda: state_of(a) == "loaded")
    assert requests_sent_to(a) == [late.request_id]
    assert len(processes) == 3


async def test_postponed_requests_go_on_if_the_waiting_client_leaves(
    rivals: EngineSwaps, turns: Callable[[float], None], processes: list[FakeProcess]
) -> None:
    turns(0.01)
    a, b = rivals.engines
    running = await started(a)
    waiting = ask(b)
    await until(lambda: a.client.is_postponing)
    late = ask(a)
    waiting.abort()
    await until(lambda: not a.client.is_postponing)
    assert requests_sent_to(a) == [running.request_id, late.request_id]
    assert rivals.forecast_seconds(a) == 0
    assert len(processes) == 1


async def test_lines_never_make_an_engine_with_clients_leave_and_take_an_idle_one_after_a_turn(
    rivals: EngineSwaps, turns: Callable[[float], None]
) -> None:
    turns(0.1)
    a, b = rivals.engines
    running = await started(a)
    line = ask_for_line(b)
    await asyncio.sleep(0.3)
    assert not a.client.is_postponing
    assert rivals.forecast_seconds(a) == 0
    end(a, running)
    await asyncio.sleep(0.03)
    assert states(rivals) == ["loaded", "asleep"], "clients of a may come back"
    await until(lambda: state_of(b) == "loaded")
    assert time.monotonic() - a.idle_since_seconds >= 0.1
    assert requests_sent_to(b) == [line.request_id]


async def test_an_engine_with_only_lines_makes_room_for_a_client_without_a_turn(
    processes: list[FakeProcess], turns: Callable[[float], None]
) -> None:
    turns(60)
    async with swapping(1, 1, 1, budget=1) as swaps:
        a, b, c = swaps.engines
        running = await started(b, LINE_URGENCY)
        of_c = ask_for_line(c)
        await asyncio.sleep(0.03)
        c.load_seconds = 30
        assert swaps.forecast_seconds(a) < 1, "clients are served before lines"
        waiting = ask(a)
        await until(lambda: b.client.is_postponing)
        later = ask_for_line(b)
        end(b, running)
        await until(lambda: state_of(a) == "loaded")
        assert requests_sent_to(a) == [waiting.request_id]
        assert not later.take()
        assert not of_c.take()


async def test_engines_with_only_lines_take_turns_until_a_client_comes(
    rivals: EngineSwaps, turns: Callable[[float], None]
) -> None:
    turns(0.05)
    a, b = rivals.engines
    running = await started(a, LINE_URGENCY)
    of_b = ask_for_line(b)
    await until(lambda: a.client.is_postponing)
    client = ask(a)
    await until(lambda: not a.client.is_postponing)
    assert requests_sent_to(a) == [running.request_id, client.request_id]
    end(a, client)
    await until(lambda: a.client.is_postponing)
    end(a, running)
    await until(lambda: state_of(b) == "loaded")
    assert requests_sent_to(b) == [of_b.request_id]


async def test_what_lines_have_waited_does_not_shorten_the_wait_of_a_client(
    rivals: EngineSwaps, turns: Callable[[float], None]
) -> None:
    turns(0.1)
    a, b = rivals.engines
    await started(a)
    ask_for_line(b)
    await asyncio.sleep(0.15)
    began_seconds = time.monotonic()
    ask(b)
    await until(lambda: a.client.is_postponing)
    assert time.monotonic() - began_seconds >= 0.1


async def test_a_crashed_engine_that_has_to_go_is_restarted_for_its_running_requests_alone(
    rivals: EngineSwaps, turns: Callable[[float], None], processes: list[FakeProcess]
) -> None:
    turns(0.01)
    a, b = rivals.engines
    running = await started(a)
    ask(b)
    await until(lambda: a.client.is_postponing)
    late = ask(a)
    processes[0].kill()
    await until(lambda: len(processes) == 2 and state_of(a) == "loaded")
    assert requests_sent_to(a) == [running.request_id]
    end(a, running)
    await until(lambda: state_of(b) == "loaded")
    assert not late.take()
    assert rivals.used_bytes == 1


async def test_requests_fail_with_their_model_if_it_cannot_be_loaded_and_others_go_on(
    processes: list[FakeProcess], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(swapped_engine, "RETRY_SECONDS", 0.05)
    async with swapping(1, 1) as swaps:
        a, b = swaps.engines
        await used(b)
        LoadingProcess.errors.append(EngineStartFailed("The file is damaged."))
        failing = [ask(a), ask(a)]
        await until(lambda: not a.is_changing and not a.client.requests)
        for outputs in failing:
            with pytest.raises(ModelLoadFailed, match="The model a cannot be loaded"):
                outputs.take()
        assert "The file is damaged." in caplog.text
        with pytest.raises(ModelLoadFailed):
            ask(a)
        assert states(swaps) == ["asleep", "loaded"]
        assert ask(b).request_id in requests_sent_to(b)
        await asyncio.sleep(0.06)
        again = await started(a)
        assert requests_sent_to(a) == [again.request_id]


@pytest.mark.parametrize("is_permanent", [False, True])
async def test_a_failed_load_says_whether_another_try_can_help(
    is_permanent: bool, processes: list[FakeProcess]
) -> None:
    async with swapping(1) as swaps:
        (engine,) = swaps.engines
        LoadingProcess.errors.append(EngineStartFailed("The file is damaged.", is_permanent=is_permanent))
        outputs = ask(engine)
        await until(lambda: not engine.is_changing and not engine.client.requests)
        for failing in (outputs.take, lambda: ask(engine)):
            with pytest.raises(ModelLoadFailed) as failed:
                failing()
            assert failed.value.is_permanent == is_permanent
    assert len(processes) == 1


@pytest.mark.parametrize("num_kills", [2, 3])
async def test_a_process_that_is_killed_while_it_loads_is_started_again_twice(
    num_kills: int, processes: list[FakeProcess]
) -> None:
    async with swapping(1) as swaps:
        (engine,) = swaps.engines
        LoadingProcess.errors += [EngineEndedEarly("It was killed.")] * num_kills
        outputs = ask(engine)
        await until(lambda: len(processes) == 3 and not engine.is_changing)
        if num_kills == 2:
            assert requests_sent_to(engine) == [outputs.request_id]
        else:
            with pytest.raises(ModelLoadFailed):
                outputs.take()


async def test_an_idle_engine_sleeps_and_the_next_request_wakes_it(processes: list[FakeProcess]) -> None:
    async with swapping(1, sleep_after=0.05) as swaps:
        (engine,) = swaps.engines
        outputs = await started(engine)
        await asyncio.sleep(0.08)
        assert state_of(engine) == "loaded", "it has a request"
        end(engine, outputs)
        began = time.monotonic()
        await until(lambda: state_of(engine) == "asleep" and not engine.is_changing)
        assert time.monotonic() - began > 0.04
        assert processes[0].num_stops == 1
        assert engine.client.is_ready
        await used(engine)
        assert len(processes) == 2
        listener = engine.client.listener
        assert isinstance(listener, Sleeps)
        assert (listener.num_loads, listener.num_sleeps) == (2, 1)


async def test_a_request_that_comes_while_its_engine_is_put_to_sleep_wakes_it_again(
    rivals: EngineSwaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_stop = asyncio.Event()

    async def stop(process: FakeProcess) -> str:
        await may_stop.wait()
        return "exit status 0"

    a, b = rivals.engines
    await used(a)
    monkeypatch.setattr(LoadingProcess, "stop", stop)
    ask(b)
    await until(lambda: a.is_changing)
    outputs = ask(a)
    assert rivals.used_bytes == 1, "its memory is not free yet"
    assert state_of(b) == "asleep"
    may_stop.set()
    await until(lambda: state_of(b) == "loaded")
    end(b, OutputQueue(1, lambda _: None))
    await until(lambda: state_of(a) == "loaded")
    assert requests_sent_to(a) == [outputs.request_id]


async def test_the_forecast_counts_loads_and_running_requests(processes: list[FakeProcess]) -> None:
    async with swapping(1, 1, 1, budget=1) as swaps:
        a, b, c = swaps.engines
        a.load_seconds, b.load_seconds, c.load_seconds = 10.0, 20.0, 40.0
        a.drain_seconds = lambda: 5.0
        assert swaps.forecast_seconds(a) == 10
        LoadingProcess.may_load.clear()
        ask(a)
        await until(lambda: a.began_loading_seconds is not None)
        assert swaps.forecast_seconds(a) == pytest.approx(10, abs=1)
        LoadingProcess.may_load.set()
        await until(lambda: state_of(a) == "loaded")
        assert swaps.forecast_seconds(a) == 0
        assert a.load_seconds < 10, "measured"
        assert swaps.forecast_seconds(b) == 20 + 5
        ask(b)
        assert swaps.forecast_seconds(b) == 20 + 5
        assert swaps.forecast_seconds(c) == 20 + 40 + 5
    assert expected_load_seconds(3_000_000_000) == 13


async def test_stop_ends_what_is_loaded_loading_and_waiting(processes: list[FakeProcess]) -> None:
    async with swapping(1, 1, 1, budget=2) as swaps:
        a, b, c = swaps.engines
        await used(a)
        running = ask(a)
        LoadingProcess.may_load.clear()
        others = [ask(b), ask(c)]
        await until(lambda: state_of(b) == "loading")
        await swaps.stop()
        for outputs in (running, *others):
            with pytest.raises(EngineDied):
                outputs.take()
        for engine in swaps.engines:
            with pytest.raises(EngineUnavailable):
                ask(engine)
        assert all(process.num_stops for process in processes)


async def test_a_load_that_hangs_fails_and_gives_its_memory_back(
    rivals: EngineSwaps, processes: list[FakeProcess], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_swaps, "MIN_TIMEOUT_SECONDS", 0)
    monkeypatch.setattr(engine_swaps, "TIMEOUT_FACTOR", 1)
    a, b = rivals.engines
    a.load_seconds, b.load_seconds = 0.05, 60.0
    LoadingProcess.may_load.clear()
    hanging, waiting = ask(a), ask(b)
    await until(lambda: len(processes) == 2)
    LoadingProcess.may_load.set()
    await until(lambda: state_of(b) == "loaded")
    assert requests_sent_to(b) == [waiting.request_id]
    with pytest.raises(ModelLoadFailed):
        hanging.take()
    assert processes[0].num_stops == 1
    assert "The model a cannot be loaded: It has not been loaded within 0.05 s." in caplog.text


async def test_stop_does_not_wait_for_a_load_that_has_just_begun(processes: list[FakeProcess]) -> None:
    async with swapping(1) as swaps:
        LoadingProcess.may_load.clear()
        outputs = ask(swaps.engines[0])
        swaps._check()
        async with asyncio.timeout(60):
            await swaps.stop()
        with pytest.raises(EngineDied):
            outputs.take()


@pytest.mark.parametrize("seed", range(5))
async def test_the_budget_holds_and_no_request_is_cut_or_left_for_random_loads(
    seed: int, processes: list[FakeProcess], turns: Callable[[float], None]
) -> None:
    turns(0.02)
    numbers = random.Random(seed)
    async with swapping(1, 2, 3, 2, budget=4) as swaps:
        is_over = False

        async def watch() -> None:
            while not is_over:
                assert swaps.used_bytes <= 4
                busy = [engine for engine in swaps.engines if engine.client.requests.num_active]
                assert all(state_of(engine) != "asleep" or engine.is_waiting or engine.is_changing for engine in busy)
                await asyncio.sleep(0)

        async def answered(engine: SwappedEngine) -> None:
            await asyncio.sleep(numbers.random() * 0.3)
            outputs = ask(engine)
            await until(lambda: is_running(engine, outputs))
            process = engine.client._process
            await asyncio.sleep(numbers.random() * 0.02)
            assert engine.client._process is process, "it was not swapped meanwhile"
            end(engine, outputs)
            output = outputs.take()
            assert output is not None
            assert output.finish_reason == "length"

        watching = asyncio.create_task(watch())
        await asyncio.gather(*[answered(numbers.choice(swaps.engines)) for _ in range(60)])
        is_over = True
        await watching
        assert len(processes) > 4


def is_running(engine: SwappedEngine, outputs: OutputQueue) -> bool:
    return state_of(engine) == "loaded" and outputs.request_id in requests_sent_to(engine)
