"""Snapshots: when the engine process sends snapshots, and the changes of each step that come with them."""

import time
from collections.abc import Callable

from caravan.scheduler.change_recorder import ChangeRecorder
from caravan.scheduler.messages import EngineSnapshot, StepStats
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.snapshot import engine_snapshot

MAX_SHARE = 0.005  # of the processor time of the step loop, for snapshots
MAX_PERIOD_SECONDS = 4.0  # between two snapshots, however long they take


class Snapshots:
    """Sends snapshots while there are subscribers. Call `queue` and `after_step` only while `period_seconds` is not 0.

    A snapshot of a large pool takes milliseconds; then they are sent less often than every `period_seconds`.
    """

    def __init__(
        self,
        send: Callable[[EngineSnapshot], None],
        clock: Callable[[], float] = time.monotonic,
        used_seconds: Callable[[], float] = time.thread_time,
    ) -> None:
        """`clock` returns seconds, `used_seconds` the processor time of this thread."""
        self.period_seconds = 0.0  # 0: no snapshots
        self._send = send
        self._clock = clock
        self._used_seconds = used_seconds
        self._recorder = ChangeRecorder(clock)
        self._due_at_seconds = 0.0

    def subscribe(self, period_seconds: float) -> None:
        """Start, with the tables of all sequences, or stop if the period is 0. Also for each further subscriber."""
        if self.period_seconds and period_seconds:
            self._recorder.request_tables()
        else:
            self._recorder = ChangeRecorder(self._clock)
        self.period_seconds = period_seconds

    def queue(self, request_id: int) -> None:
        """Record that a request was added to the queue."""
        self._recorder.queue(request_id)

    def after_step(self, scheduler: Scheduler, stats: StepStats) -> None:
        """Record what a step changed, and send a snapshot if one is due."""
        self._recorder.observe(scheduler, stats)
        if (now := self._clock()) < self._due_at_seconds:
            return
        started = self._used_seconds()
        self._send(engine_snapshot(scheduler, *self._recorder.take()))
        least_seconds = (self._used_seconds() - started) / MAX_SHARE
        self._due_at_seconds = now + max(self.period_seconds, min(least_seconds, MAX_PERIOD_SECONDS))
