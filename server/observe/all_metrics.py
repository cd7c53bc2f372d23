"""AllMetrics: the metrics of several models as one exposition."""

from collections.abc import Iterable, Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import CollectorRegistry

from caravan.server.observe.metrics import Metrics


class AllMetrics:
    """The metrics of all models, each with its own registry."""

    def __init__(self, metrics: Sequence[Metrics]) -> None:
        """`metrics` has at least one."""
        self._metrics = metrics

    @property
    def registry(self) -> CollectorRegistry:
        """What a scrape reads: the registry of one model, or the series of all of them in the same families."""
        if len(self._metrics) == 1:
            return self._metrics[0].registry
        registry = CollectorRegistry()
        registry.register(self)
        return registry

    def collect(self) -> Iterable[Metric]:
        """Return each family once. Series without the name of a model are of the process, and taken from the first."""
        families: dict[str, Metric] = {}
        for metrics in self._metrics:
            for family in metrics.registry.collect():
                merged = families.get(family.name)
                if merged is None:
                    merged = families[family.name] = Metric(family.name, family.documentation, family.type, family.unit)
                    merged.samples = [*family.samples]
                else:
                    merged.samples += [sample for sample in family.samples if "model_name" in sample.labels]
        return families.values()
