"""ReplicaEvents: what metrics, admission, history and live view make of the events of replicas."""

import asyncio
import json

import pytest

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import EngineSnapshot, SequenceEvent, SequenceOutput, StepOutput, StepStats
from caravan.server.generation.admission import Admission
from caravan.server.generation.context import RequestContext
from caravan.server.observe.metrics import Metrics
from caravan.server.observe.replica_metrics import ReplicaMetrics
from caravan.server.observe.request_history import RequestHistory
from caravan.server.observe.request_record import RequestRecord
from caravan.server.operations.live_view import LiveView
from caravan.server.operations.replica_events import ReplicaEvents

CONFIG = EngineConfig(num_blocks=10_000, max_num_seqs=2, max_model_len=512)


class Parts:
    """All parts, with a record of a request that replica "a" has."""

    def __init__(self) -> None:
        self.metrics = Metrics("fake", CONFIG)
        self.latest: dict[str, StepStats] = {}
        counts = ReplicaMetrics(self.metrics.registry, "fake", lambda: self.latest)
        self.admission = Admission(CONFIG, self.metrics)
        self.history = RequestHistory()
        self.live_view = LiveView(lambda _: None)
        self.events = ReplicaEvents(self.metrics, counts, self.admission, self.history, self.live_view)
        self.record = RequestRecord("cmpl-1", "1", "", 0.0)
        (self.reservation,) = self.admission.admit([(10, 20)], RequestContext())

    async def submit(self) -> None:
        self.events.on_route(7, "a", 32)
        self.admission.submit(self.reservation, 7)
        self.history.queue(self.record, 7)
        self.history.begin(self.record)
        await asyncio.sleep(0)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"caravan_{name}", {"model_name": "fake"} | labels)

    def timeline(self) -> list[dict[str, object]]:
        body: dict[str, list[dict[str, object]]] = json.loads(
            json.dumps(self.record.explanation().timeline and {"timeline": self.record.explanation().timeline})
        )
        return [{name: value for name, value in event.items() if name != "at_ms"} for event in body["timeline"]]


def a_step(num_running: int, **stats: float) -> StepOutput:
    events = [SequenceEvent(7, "join")]
    outputs = [SequenceOutput(request_id=7, token_ids=[1])]
    return StepOutput(outputs=outputs, events=events, stats=StepStats(num_running=num_running, **stats))  # type: ignore[arg-type]


async def test_metrics_have_the_sum_and_the_record_has_the_batch_of_its_replica() -> None:
    parts = Parts()
    await parts.submit()
    parts.events.on_step(a_step(2), a_step(9))
    assert parts.sample("num_requests_running") == 9
    assert parts.reservation.is_in_batch
    assert parts.record.explanation().choices[0].largest_batch == 2
    assert {"event": "routed", "choice": 0, "tokens": 0, "replica": "a", "known_tokens": 32} in parts.timeline()


async def test_a_loss_is_counted_recorded_and_shown() -> None:
    parts = Parts()
    await parts.submit()
    subscriber = parts.live_view.subscribe()
    parts.events.on_step(a_step(2), a_step(9))
    parts.events.on_loss("a", [7, 8])
    assert not parts.reservation.is_in_batch
    assert parts.timeline()[-1] == {"event": "replica lost", "choice": 0, "tokens": 1, "replica": "a"}
    assert parts.sample("replica_losses_total") == 1
    assert parts.sample("requests_replayed_total") == 2
    parts.events.on_snapshot(
        EngineSnapshot(stats=StepStats(), block_size=1, blocks_per_cell=1, cell_states=[], running=[], waiting=[])
    )
    assert b"replica a was lost" in (await subscriber.take() or b"")


async def test_subscribers_see_that_no_replica_is_left() -> None:
    parts = Parts()
    subscriber = parts.live_view.subscribe()
    parts.events.on_snapshot(
        EngineSnapshot(stats=StepStats(), block_size=1, blocks_per_cell=1, cell_states=[], running=[], waiting=[])
    )
    parts.events.on_disconnect()
    assert b'"is_replacing":false' in (await subscriber.take() or b"").replace(b" ", b"")
    assert b'"is_replacing":true' in (await subscriber.take() or b"").replace(b" ", b"")


async def test_routes_are_counted_by_what_decided() -> None:
    parts = Parts()
    parts.events.on_route(1, "a", 0)
    parts.events.on_route(2, "a", 16)
    parts.events.on_route(3, "a", 16)
    assert parts.sample("replica_routed_requests_total", by="load") == 1
    assert parts.sample("replica_routed_requests_total", by="prefix") == 2


async def test_gauges_are_of_connected_replicas_only() -> None:
    parts = Parts()
    parts.latest = {"a": StepStats(num_running=3, num_blocks=10, num_used_blocks=5), "b": StepStats(num_waiting=4)}
    assert parts.sample("replicas_connected") == 2
    assert parts.sample("replica_num_requests_running", replica="a") == 3
    assert parts.sample("replica_num_requests_waiting", replica="b") == 4
    assert parts.sample("replica_kv_cache_usage_perc", replica="a") == 0.5
    assert parts.sample("replica_kv_cache_usage_perc", replica="b") == 0.0
    del parts.latest["a"]
    assert parts.sample("replica_num_requests_running", replica="a") is None


async def test_admission_forecasts_with_the_room_of_all_replicas() -> None:
    parts = Parts()
    for num_prefill_tokens in (0, 500) * 20:
        stats = StepStats(
            num_decode_tokens=2, num_prefill_tokens=num_prefill_tokens, step_seconds=0.1 + num_prefill_tokens * 1e-3
        )
        parts.events.on_step(StepOutput(outputs=[], stats=stats), StepOutput(outputs=[], stats=stats))
    limits: list[int] = []
    parts.events.on_max_num_seqs = limits.append
    for _ in range(5):
        parts.admission.admit([(100, 50)], RequestContext())
    one = parts.admission.admit([(100, 50)], RequestContext())[0].predicted_wait_seconds
    parts.events.on_capacity(EngineConfig(num_blocks=40_000, max_num_seqs=8, max_model_len=512), 4)
    four = parts.admission.admit([(100, 50)], RequestContext())[0].predicted_wait_seconds
    assert one > 10
    assert four == pytest.approx(6 * 100 * 1e-3 / 4, rel=0.2)
    assert limits == [8]
    parts.events.on_disconnect()
    assert parts.metrics.stats.num_running == 0
