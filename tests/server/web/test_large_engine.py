"""The page with a simulated pool of a thousand blocks and a batch of 256 sequences."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser, expect

from caravan.scheduler.messages import EngineSnapshot, SequenceEvent, SequenceSnapshot, StepOutput, StepStats
from caravan.server.operations.live_view import SNAPSHOT_SECONDS, LiveView, live_view_router
from caravan.server.operations.page import page_router
from tests.support.browser_page import FRAMES_A_SECOND, IN_BROWSER

NUM_BLOCKS, NUM_SEQUENCES = 1000, 256

pytestmark = [*IN_BROWSER, pytest.mark.timing]


def view_of(step: int) -> EngineSnapshot:
    """Return a pool and a batch that change everywhere from view to view."""
    chance = random.Random(step)
    sequences = [
        SequenceSnapshot(
            request_id=number,
            num_prompt_tokens=100,
            num_tokens=100 + step % 500,
            num_computed_tokens=99 + step % 500,
            max_tokens=600,
            num_blocks=4,
        )
        for number in range(1, NUM_SEQUENCES + 1)
    ]
    stats = StepStats(step=step, num_running=NUM_SEQUENCES, num_blocks=NUM_BLOCKS, num_used_blocks=900)
    return EngineSnapshot(
        stats=stats,
        block_size=16,
        blocks_per_cell=1,
        cell_states=[chance.randrange(4) for _ in range(NUM_BLOCKS)],
        cell_owners=[chance.randrange(NUM_SEQUENCES) for _ in range(NUM_BLOCKS)],
        running=sequences,
        waiting=[],
    )


async def report(live_view: LiveView) -> None:
    """Report a step every 20 ms, with events, and a snapshot when the engine would."""
    views_every = round(SNAPSHOT_SECONDS / 0.02)
    step = 0
    while True:
        step += 1
        stats = StepStats(step=step, num_decode_tokens=NUM_SEQUENCES, step_seconds=0.02)
        live_view.on_step(StepOutput(outputs=[], stats=stats, events=[SequenceEvent(step % 256 + 1, "join")]))
        if step % views_every == 0:
            live_view.on_snapshot(view_of(step))
        await asyncio.sleep(0.02)


@pytest.fixture
def url() -> Iterator[str]:
    """The address of the page over that engine."""
    live_view = LiveView(lambda _: None)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        reporting = asyncio.create_task(report(live_view))
        yield
        reporting.cancel()

    app = FastAPI(lifespan=lifespan)
    app.include_router(page_router())
    app.include_router(live_view_router({"fake": live_view}, 10.0))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_thousand_blocks_and_256_rows_are_drawn_fast(browser: Browser, url: str) -> None:
    page = browser.new_page()
    page.goto(f"{url}#engine")
    expect(page.locator("#numbers")).to_contain_text("256 run", timeout=20_000)
    expect(page.locator("#batch tr")).to_have_count(NUM_SEQUENCES)
    frames = page.evaluate(FRAMES_A_SECOND)
    print(f"{frames} frames a second")
    assert frames >= 30
    page.close()
