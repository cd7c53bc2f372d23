"""ReplicaEvents: passes the events of replicas to metrics, admission, history and live view."""

import asyncio
from collections.abc import Callable, Collection

from typing_extensions import override

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import EngineSnapshot, StepOutput
from caravan.server.generation.admission import Admission
from caravan.server.observe.metrics import Metrics
from caravan.server.observe.replica_metrics import ReplicaMetrics
from caravan.server.observe.request_history import RequestHistory
from caravan.server.operations.live_view import LiveView
from caravan.server.replicas.replica_listener import ReplicaListener


class ReplicaEvents(ReplicaListener):
    """Metrics and the live view show the sums of all replicas; admission and history get each step as it was."""

    def __init__(
        self,
        metrics: Metrics,
        replica_metrics: ReplicaMetrics,
        admission: Admission,
        history: RequestHistory,
        live_view: LiveView,
    ) -> None:
        self.on_max_num_seqs: Callable[[int], None] = lambda _: None  # called when the sum of the replicas changes
        self._metrics = metrics
        self._replica_metrics = replica_metrics
        self._admission = admission
        self._history = history
        self._live_view = live_view

    @override
    def on_step(self, output: StepOutput, total: StepOutput) -> None:
        self._metrics.on_step(total)
        self._admission.on_step(output)
        self._history.on_step(output)
        self._live_view.on_step(total)

    @override
    def on_snapshot(self, snapshot: EngineSnapshot) -> None:
        self._live_view.on_snapshot(snapshot)

    @override
    def on_route(self, request_id: int, replica: str, num_known_tokens: int) -> None:
        self._replica_metrics.count_route(num_known_tokens)
        # A new request gets its record when `submit` has returned.
        asyncio.get_running_loop().call_soon(self._history.route, request_id, replica, num_known_tokens)

    @override
    def on_loss(self, replica: str, request_ids: Collection[int]) -> None:
        self._replica_metrics.count_loss()
        self._metrics.on_replay(len(request_ids), 0.0)
        self._admission.requeue(request_ids)
        self._history.lose(request_ids, replica)
        self._live_view.note(f"replica {replica} was lost")

    @override
    def on_capacity(self, config: EngineConfig, num_replicas: int) -> None:
        self._admission.config = config
        self._admission.num_engines = num_replicas
        self.on_max_num_seqs(config.max_num_seqs)

    @override
    def on_disconnect(self) -> None:
        self._metrics.on_disconnect()
        self._live_view.on_restart()
