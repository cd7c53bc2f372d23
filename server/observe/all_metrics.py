"""AllMetrics: the metrics of several models as one exposition."""

from collections.abc import Iterable, Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import CollectorRegistry

from caravan.server.observe.metrics import Metrics


class AllMetrics:
    """The metrics of each model by its name; the first one also counts requests that name no model."""

    def __init__(self, metrics: Mapping[str, Metrics]) -> None:
        """`metrics` has at least one."""
        self.first = next(iter(metrics.values()))
        self._by_model = metrics

    def of_model(self, name: str | None) -> Metrics:
        """Return the metrics of a model, those of the first one if there is no such model."""
        return self.first if name is None else self._by_model.get(name, self.first)

    @property
    def registry(self) -> CollectorRegistry:
        """What a scrape reads: the registry of one model, or the series of all of them in the same families."""
        if len(self._by_model) == 1:
            return self.first.registry
        registry = CollectorRegistry()
        registry.register(self)
        return registry

    def collect(self) -> Iterable[Metric]:
        """Return each family once. Series without the name of a model are of the process, and taken from the first."""
        families: dict[str, Metric] = {}
        for metrics in self._by_model.values():
            for family in metrics.registry.collect():
                merged = families.get(family.name)
                if merged is None:
                    merged = families[family.name] = Metric(family.name, family.documentation, family.type, family.unit)
                    merged.samples = [*family.samples]
                else:
                    merged.samples += [sample for sample in family.samples if "model_name" in sample.labels]
        return families.values()
