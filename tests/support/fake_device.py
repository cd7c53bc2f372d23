"""A device that computes as late as possible: what is launched runs in order, when a result is asked for."""

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from caravan.scheduler.overlap import Pending

T = TypeVar("T")


class FakePending(Generic[T]):
    """The result of a launch."""

    def __init__(self, compute: Callable[[], T], device: "FakeDevice") -> None:
        self._compute = compute
        self._device = device
        self._value: list[T] = []
        self._error: BaseException | None = None
        self.is_done = False

    def run(self) -> None:
        """Compute; an exception is kept for the one who asks for the result."""
        try:
            self._value.append(self._compute())
        except Exception as error:
            self._error = error
        self.is_done = True

    def result(self) -> T:
        """Return the result after all launches before this one have run."""
        self._device.run_until(self)
        if self._error is not None:
            raise self._error
        return self._value[0]


class FakeDevice:
    """A queue of launches."""

    def __init__(self) -> None:
        self._queue: deque[FakePending[object]] = deque()
        self.max_queued = 0  # launches that waited at once, at most
        self.num_runs = 0

    def launch(self, compute: Callable[[], T]) -> FakePending[T]:
        """Queue a computation."""
        pending = FakePending(compute, self)
        self._queue.append(pending)  # type: ignore[arg-type]  # the queue only runs it
        self.max_queued = max(self.max_queued, len(self._queue))
        return pending

    def submit(self, work: Callable[[], Pending]) -> Pending:
        """Queue work that returns samples to be, and return the samples."""
        return self.launch(lambda: work().result())

    def run_until(self, pending: FakePending[T]) -> None:
        """Run the queue up to a launch."""
        while not pending.is_done:
            self._queue.popleft().run()
            self.num_runs += 1
