"""ReplicaMetrics: which replicas are connected, how busy each is, and how requests were routed."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from caravan.scheduler.messages import StepStats

_PREFIX = "caravan_replica"


class ReplicaMetrics(Collector):
    """Gauges with the label `replica`, of connected replicas only, and counters of all together."""

    def __init__(
        self, registry: CollectorRegistry, model_name: str, latest_stats: Callable[[], Mapping[str, StepStats]]
    ) -> None:
        """`latest_stats` returns the statistics of the latest step of each connected replica; a scrape calls it."""
        self._model_name = model_name
        self._latest_stats = latest_stats
        registry.register(self)
        text = "Requests sent to replicas, by what decided: a known prefix, or the number of requests."
        routed = Counter(f"{_PREFIX}_routed_requests", text, ["model_name", "by"], registry=registry)
        self._routed = {by: routed.labels(model_name, by) for by in ("prefix", "load")}
        text = "Replicas that were lost: their engine ended, or they could not be reached."
        self._losses = Counter(f"{_PREFIX}_losses", text, ["model_name"], registry=registry).labels(model_name)

    def count_route(self, num_known_tokens: int) -> None:
        """Count a request that was sent to a replica which has this many of its tokens."""
        self._routed["prefix" if num_known_tokens else "load"].inc()

    def count_loss(self) -> None:
        """Count a replica that was lost."""
        self._losses.inc()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the gauges with their present values."""
        latest = self._latest_stats()
        connected = GaugeMetricFamily(f"{_PREFIX}s_connected", "Connected replicas.", labels=["model_name"])
        connected.add_metric([self._model_name], len(latest))
        yield connected
        values: tuple[tuple[str, str, Callable[[StepStats], float]], ...] = (
            ("num_requests_running", "Sequences in the batch of a replica.", lambda stats: stats.num_running),
            ("num_requests_waiting", "Sequences in the queue of a replica.", lambda stats: stats.num_waiting),
            (
                "kv_cache_usage_perc",
                "Fraction of the KV pool of a replica in use, 0 to 1.",
                lambda stats: stats.num_used_blocks / max(stats.num_blocks, 1),
            ),
        )
        for name, text, value in values:
            family = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=["model_name", "replica"])
            for replica, stats in latest.items():
                family.add_metric([self._model_name, replica], value(stats))
            yield family
