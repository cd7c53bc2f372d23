"""SpillMetrics: the series of the spill file. They are zero on a server without one."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from caravan.scheduler.messages import SpillCounts

_PREFIX = "caravan_kv_spill_"
_EVENTS = ("written", "read", "dropped", "damaged")


class SpillMetrics:
    """Counters of blocks by event, and the size of the file by state."""

    def __init__(self, registry: CollectorRegistry, model_name: str, latest: Callable[[], SpillCounts | None]) -> None:
        """`latest` returns what the latest step says of the file; gauges call it when they are scraped."""
        text = "Blocks of the spill file: written, read, dropped before they were written, or damaged and not used."
        family = Counter(_PREFIX + "blocks", text, ["model_name", "event"], registry=registry)
        self._blocks = {event: family.labels(model_name, event) for event in _EVENTS}
        text = "Size of the spill file by state: used by blocks, or free."
        sizes = Gauge(_PREFIX + "bytes", text, ["model_name", "state"], registry=registry)
        sizes.labels(model_name, "used").set_function(lambda: (latest() or SpillCounts()).used_bytes)
        sizes.labels(model_name, "free").set_function(lambda: (latest() or SpillCounts()).free_bytes)

    def observe(self, counts: SpillCounts) -> None:
        """Count what happened to the file before one step."""
        for event, counter in self._blocks.items():
            if num_blocks := getattr(counts, f"num_{event}"):  # zero in most steps
                counter.inc(num_blocks)
