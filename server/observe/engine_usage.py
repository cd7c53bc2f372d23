"""EngineUsage: memory and processor time of an engine process, which `process_*` of the API process lacks."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class EngineUsage(Collector):
    """Two metrics that are read from the operating system when they are scraped; none while there is no engine."""

    def __init__(
        self,
        registry: CollectorRegistry,
        model_name: str,
        engine_pid: Callable[[], int | None],
        *,
        has_ranks: bool = False,
    ) -> None:
        """`engine_pid` returns the process id, None without an engine; with ranks, its child processes count, too."""
        self._model_name = model_name
        self._engine_pid = engine_pid
        self._has_ranks = has_ranks
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Return both with their present values."""
        memory = GaugeMetricFamily(
            "caravan_engine_resident_memory_bytes", "Resident memory of the engine process.", labels=["model_name"]
        )
        processor = CounterMetricFamily(
            "caravan_engine_cpu_seconds", "Processor time of the engine process.", labels=["model_name"]
        )
        pid = self._engine_pid()
        usage = None if pid is None else process_usage(pid, has_children=self._has_ranks)
        if usage is not None:
            num_bytes, seconds = usage
            memory.add_metric([self._model_name], num_bytes)
            processor.add_metric([self._model_name], seconds)
        return memory, processor


def process_usage(pid: int, *, has_children: bool = False) -> tuple[int, float] | None:
    """Return the resident bytes and the processor seconds of a process, None if it has ended.

    With `has_children`, those of its children are added, which takes a look at every process of the machine.
    """
    import psutil  # here: a server that is not scraped starts without it

    try:
        process = psutil.Process(pid)
        processes = [process, *(process.children(recursive=True) if has_children else ())]
        times = [one.cpu_times() for one in processes]
        num_bytes = sum(one.memory_info().rss for one in processes)
    except psutil.Error:  # it has ended
        return None
    return num_bytes, sum(time.user + time.system for time in times)
