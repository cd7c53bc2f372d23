"""Slots are shared between keys, and none is lost when a task is cancelled."""

import asyncio

import pytest

from caravan.server.batches.slots import Slots


async def test_a_free_slot_goes_to_the_key_with_the_fewest() -> None:
    slots, order = Slots(2), list[str]()

    async def take(key_name: str) -> None:
        await slots.take(key_name)
        order.append(key_name)

    tasks = [asyncio.create_task(take(key_name)) for key_name in ("a", "a", "a", "b", "a", "b")]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order == ["a", "a"]
    for key_name in ("a", "a", "b", "a"):
        slots.release(key_name)
        await asyncio.sleep(0.01)
    assert order == ["a", "a", "b", "a", "b", "a"]
    assert slots.num_taken == 2
    await asyncio.gather(*tasks)


async def test_a_slot_of_a_cancelled_task_is_free() -> None:
    slots = Slots(1)
    await slots.take("a")
    waits, next_one = asyncio.create_task(slots.take("a")), asyncio.create_task(slots.take("a"))
    await asyncio.sleep(0)
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    slots.release("a")
    next_one.cancel()  # it has the slot, but does not know
    with pytest.raises(asyncio.CancelledError):
        await next_one
    await asyncio.wait_for(slots.take("b"), 60)
    assert slots.num_taken == 1
