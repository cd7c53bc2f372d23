"""vLLM's names of four gauges, for routers that read them: `--metrics-names vllm`.

Source: the model server protocol of the Gateway API Inference Extension, proposal 003.
"""

from collections.abc import Iterable

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from caravan.scheduler.config import EngineConfig
from caravan.server.observe.metrics import Metrics


class VllmNames(Collector):
    """Gauges of queue, batch and pool under vLLM's names, with the values of our own."""

    def __init__(self, metrics: Metrics, model_name: str, config: EngineConfig) -> None:
        self._metrics = metrics
        self._model_name = model_name
        self._config = config

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the four gauges with their present values."""
        stats = self._metrics.stats
        for name, text, value in (
            ("num_requests_waiting", "Sequences in the engine's queue.", stats.num_waiting),
            ("num_requests_running", "Sequences in the engine's batch.", stats.num_running),
            ("kv_cache_usage_perc", "Fraction of the KV pool in use, 0 to 1.", self._metrics.kv_cache_usage()),
        ):
            family = GaugeMetricFamily(f"vllm:{name}", text, labels=["model_name"])
            family.add_metric([self._model_name], value)
            yield family
        labels = {"block_size": self._config.block_size, "num_gpu_blocks": self._config.num_blocks}
        info = GaugeMetricFamily(
            "vllm:cache_config_info", "Size of the KV pool, as labels.", labels=["model_name", *labels]
        )
        info.add_metric([self._model_name, *map(str, labels.values())], 1)
        yield info


def add_vllm_names(metrics: Metrics, model_name: str, config: EngineConfig) -> None:
    """Add vLLM's names to the metrics of a server."""
    metrics.registry.register(VllmNames(metrics, model_name, config))
