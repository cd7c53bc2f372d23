"""BatchMetrics: Prometheus metrics of batches."""

from collections import Counter as Counts
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

_PREFIX = "caravan_batch_"


class BatchMetrics:
    """Lines of batches that wait, run and have ended."""

    def __init__(self, registry: CollectorRegistry, model_name: str, num_running: Callable[[], int]) -> None:
        """`num_running` returns the number of lines that run."""
        self._waiting: Counts[str] = Counts()  # lines without a response, by batch
        waiting = Gauge(_PREFIX + "lines_waiting", "Batch lines that wait.", ["model_name"], registry=registry)
        waiting.labels(model_name).set_function(lambda: max(0, self._waiting.total() - num_running()))
        running = Gauge(_PREFIX + "lines_running", "Batch lines that run.", ["model_name"], registry=registry)
        running.labels(model_name).set_function(num_running)
        family = Counter(_PREFIX + "lines", "Batch lines that ended.", ["model_name", "result"], registry=registry)
        self._done, self._failed = family.labels(model_name, "done"), family.labels(model_name, "failed")
        ended = Counter(_PREFIX + "ends", "Batches that ended, by status.", ["model_name", "status"], registry=registry)
        self._ended = {
            status: ended.labels(model_name, status) for status in ("completed", "failed", "expired", "cancelled")
        }

    def begin(self, batch_id: str, num_lines: int) -> None:
        """Count the lines of a batch that have no response."""
        self._waiting[batch_id] = num_lines

    def count_line(self, batch_id: str, status_code: int) -> None:
        """Count a response."""
        self._waiting[batch_id] -= 1
        (self._done if status_code == 200 else self._failed).inc()

    def end(self, batch_id: str) -> None:
        """Count no more lines of a batch as waiting."""
        self._waiting.pop(batch_id, None)

    def count_end(self, status: str) -> None:
        """Count a batch that has its last status."""
        self._ended[status].inc()
