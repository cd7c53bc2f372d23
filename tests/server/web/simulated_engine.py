"""A whole server whose engine is the real scheduler without a model: all tokens are the same."""

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from caravan.model.sampling.sample import Sample
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.snapshots import Snapshots
from caravan.scheduler.step_result import StepResult
from caravan.server.app import AppParts, create_app
from caravan.server.generation.admission import Admission
from caravan.server.generation.served_model import ServedModel
from caravan.server.http.api_keys import ApiKeys
from caravan.server.http.concurrency_limit import ConcurrencyLimit
from caravan.server.learn.tracer import Tracer
from caravan.server.observe.metrics import Metrics
from caravan.server.operations.live_view import LiveView
from caravan.server.settings import load_settings
from caravan.server.shown_options import shown_options
from tests.scheduler.requests import make_request
from tests.support.fakes import FakeEngineClient, byte_tokenizer, says

STEP_SECONDS = 0.02


class SimulatedEngine:
    """Keeps `num_requests` requests in a scheduler and runs its steps."""

    def __init__(self, num_blocks: int, max_num_seqs: int, num_requests: int) -> None:
        self.config = EngineConfig(num_blocks=num_blocks, max_num_seqs=max_num_seqs, max_model_len=512)
        self.num_requests = num_requests
        self.is_killed = False  # set by the test: no step comes, and the live view says why
        self.scheduler = Scheduler(self.config)
        self.live_view = LiveView(self._subscribe)
        self._snapshots = Snapshots(self.live_view.on_snapshot)
        self._dice = random.Random(1)
        self._number = 0

    def _subscribe(self, period_seconds: float) -> None:
        self._snapshots.subscribe(period_seconds)

    def is_observed(self) -> bool:
        """Whether snapshots are sent."""
        return self._snapshots.period_seconds > 0

    async def run(self) -> None:
        """Run steps until it is cancelled."""
        while True:
            while self.is_killed:
                self.live_view.on_restart()
                await asyncio.sleep(STEP_SECONDS)
            while len(self.scheduler.running) + len(self.scheduler.waiting) < self.num_requests:
                self._add()
            plan = self.scheduler.schedule()
            long_seconds = STEP_SECONDS * 4 * any(one.num_tokens > 1 for one in plan)
            await asyncio.sleep(STEP_SECONDS + long_seconds)
            samples = [Sample(1) for one in plan if one.wants_logits]
            output = self.scheduler.commit(plan, StepResult([*samples]))
            self.live_view.on_step(output)
            if self._snapshots.period_seconds:
                self._snapshots.after_step(self.scheduler, output.stats)

    def _add(self) -> None:
        self._number += 1
        prompt = [*range(48), *([self._number] * self._dice.randrange(1, 60))]
        self.scheduler.add(make_request(self._number, prompt, max_tokens=self._dice.randrange(30, 120)))
        if self._snapshots.period_seconds:
            self._snapshots.queue(self._number)


@contextmanager
def simulated_engine(
    *,
    num_blocks: int = 48,
    max_num_seqs: int = 8,
    num_requests: int = 10,
    keys: ApiKeys | None = None,
    tracer: Tracer | None = None,
) -> Iterator[tuple[str, SimulatedEngine, uvicorn.Server]]:
    """Serve it in a thread; yield its address, the engine and the server, which a test may stop."""
    engine = SimulatedEngine(num_blocks, max_num_seqs, num_requests)
    client = FakeEngineClient(says("Hello."), config=engine.config)
    metrics = Metrics("simulated", engine.config, keys.names if keys else ())
    client.listener = metrics
    served = ServedModel(
        name="simulated",
        max_model_len=engine.config.max_model_len,
        engine=client,
        tokenizer=byte_tokenizer(),
        chat_template=None,
        metrics=metrics,
        admission=Admission(engine.config, metrics),
    )
    parts = AppParts(
        models=[served],
        live_views=[engine.live_view],
        version="1.2.3",
        concurrency_limit=ConcurrencyLimit(100),
        keys=keys,
        tracer=tracer,
        options=shown_options(load_settings({"max_num_seqs": max_num_seqs}, {})),
    )
    config = uvicorn.Config(
        create_app(parts), port=0, log_level="critical", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)

    async def serve() -> None:
        running = asyncio.create_task(engine.run())
        await server.serve()
        running.cancel()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", engine, server
    server.should_exit = True
    engine.live_view.close()
    thread.join()
