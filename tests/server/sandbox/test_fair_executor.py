"""FairExecutor: round-robin over keys, a free thread for other keys, and a bounded queue."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from caravan.server.sandbox.fair_executor import ExecutorFull, FairExecutor


class Work:
    """Calls that wait until they may end, with the order in which they began."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.may_end = threading.Event()

    def call(self, name: str) -> Callable[[], str]:
        def work() -> str:
            self.begun.append(name)
            assert self.may_end.wait(60)
            return name

        return work


@pytest.fixture
async def executor() -> AsyncIterator[FairExecutor]:
    executor = FairExecutor("calls", num_threads=3, max_running_per_key=2, max_waiting_per_key=4, seconds_per_call=1.5)
    yield executor
    executor.close()


def ask(executor: FairExecutor, work: Work, *names: str) -> list[asyncio.Task[str]]:
    """Ask for calls; the first letter of a name is its key."""
    return [asyncio.create_task(executor.run(name[0], work.call(name))) for name in names]


async def begun(work: Work, num: int) -> None:
    async with asyncio.timeout(60):
        while len(work.begun) < num:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert len(work.begun) == num, work.begun


async def test_a_key_never_uses_the_last_thread(executor: FairExecutor) -> None:
    work = Work()
    of_a = ask(executor, work, "a1", "a2", "a3", "a4")
    await begun(work, 2)
    of_b = ask(executor, work, "b1")
    await begun(work, 3)
    work.may_end.set()
    assert await asyncio.gather(*of_a, *of_b) == ["a1", "a2", "a3", "a4", "b1"]
    assert set(work.begun[:3]) == {"a1", "a2", "b1"}


async def test_calls_start_round_robin_over_keys_and_in_order_within_a_key(executor: FairExecutor) -> None:
    gates = {name: threading.Event() for name in ("a1", "a2", "b1")}
    order: list[str] = []

    def call(name: str) -> Callable[[], None]:
        def work() -> None:
            order.append(name)
            if name in gates:
                assert gates[name].wait(60)

        return work

    tasks = [asyncio.create_task(executor.run(name[0], call(name))) for name in ("a1", "a2", "b1")]
    await asyncio.sleep(0.1)
    waiting = ("a3", "a4", "a5", "b2", "b3", "c1")
    tasks += [asyncio.create_task(executor.run(name[0], call(name))) for name in waiting]
    await asyncio.sleep(0.1)
    gates["b1"].set()
    async with asyncio.timeout(60):
        await asyncio.gather(*tasks[2:3], *tasks[6:])  # `a` has its two threads and waits for them
    assert [name for name in order if name not in gates] == ["b2", "c1", "b3"]
    gates["a1"].set()
    gates["a2"].set()
    await asyncio.gather(*tasks)
    assert [name for name in order if name[0] == "a"][2:] == ["a3", "a4", "a5"]


async def test_a_key_with_a_full_queue_is_rejected_and_others_are_not(executor: FairExecutor) -> None:
    work = Work()
    tasks = ask(executor, work, *(f"a{number}" for number in range(6)))
    await begun(work, 2)
    with pytest.raises(ExecutorFull, match="This key is at its limit of 4 waiting calls") as refused:
        await executor.run("a", work.call("a6"))
    assert refused.value.retry_after_seconds == pytest.approx(3)
    tasks += ask(executor, work, "b1")
    work.may_end.set()
    await asyncio.gather(*tasks)


async def test_a_cancelled_call_leaves_the_queue_and_a_running_one_keeps_its_thread(
    executor: FairExecutor,
) -> None:
    work = Work()
    tasks = ask(executor, work, "a1", "a2", "a3", "a4")
    await begun(work, 2)
    tasks[0].cancel()
    tasks[2].cancel()
    await asyncio.sleep(0.05)
    assert len(work.begun) == 2
    work.may_end.set()
    assert await asyncio.gather(*tasks[1:2], *tasks[3:]) == ["a2", "a4"]
    assert "a3" not in work.begun
    assert await executor.run("b", lambda: 1) == 1


async def test_exceptions_of_a_call_propagate(executor: FairExecutor) -> None:
    with pytest.raises(ZeroDivisionError):
        await executor.run("a", lambda: 1 // 0)
    assert await executor.run("a", lambda: 1) == 1
