"""RoutedRequests: every unfinished request of all replicas, those that wait for one, and which ones crash engines."""

from collections.abc import Collection

from caravan.scheduler.messages import SequenceOutput
from caravan.server.engine.in_flight import MAX_CRASHES, CrashGroup, InFlightRequest


class RoutedRequests:
    """All unfinished requests, in order of arrival.

    Crashes are counted as in `InFlightRequests`, by the requests of one HTTP request together. A group that was in the
    batch at two crashes in a row, on whichever replicas, is quarantined: it runs on a replica without other requests.
    After three more crashes it fails.
    """

    def __init__(self) -> None:
        self._requests: dict[int, InFlightRequest] = {}
        self._groups: dict[int, CrashGroup] = {}  # of all requests
        self._waiting: dict[int, InFlightRequest] = {}  # for a replica

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def waiting(self) -> list[InFlightRequest]:
        """The requests that no replica has, in order of arrival."""
        return [self._waiting[request_id] for request_id in sorted(self._waiting)] if self._waiting else []

    def add(self, request: InFlightRequest) -> None:
        """Add a new request, which waits for a replica."""
        request_id = request.outputs.request_id
        self._requests[request_id] = self._waiting[request_id] = request
        self._groups.setdefault(request.group, CrashGroup()).request_ids.add(request_id)

    def is_quarantined(self, group: int) -> bool:
        """Return whether a group is to run without other requests."""
        return group in self._groups and self._groups[group].is_quarantined

    def send(self, request_id: int) -> None:
        """Record that a replica gets a request."""
        del self._waiting[request_id]

    def put(self, output: SequenceOutput) -> None:
        """Pass an output to its request; outputs of dropped requests are ignored."""
        request = self._requests.get(output.request_id)
        if request is None:
            return
        if output.finish_reason is not None:
            self.drop(output.request_id)
        elif output.token_ids:
            self._groups[request.group].clear(output.request_id)
        request.put(output)

    def drop(self, request_id: int) -> None:
        """Remove a request that has ended or is no longer read."""
        request = self._requests.pop(request_id)
        self._waiting.pop(request_id, None)
        group = self._groups[request.group]
        group.request_ids.discard(request_id)
        group.clear(request_id)
        if not group.request_ids:
            del self._groups[request.group]

    def lose(self, request_ids: Collection[int], batch: Collection[int]) -> tuple[list[int], list[int]]:
        """Let the requests of a lost replica wait for another one, after a crash with those of `batch` in the batch.

        Fails groups with too many crashes. Returns the requests that wait now, and those that failed.
        """
        failed: list[int] = []
        for group in [*self._groups.values()]:
            group.count_crash({*batch})
            if group.crash_count >= MAX_CRASHES:
                for request_id in sorted(group.request_ids):
                    request = self._requests[request_id]
                    self.drop(request_id)
                    request.fail()
                    failed.append(request_id)
        moved = [request_id for request_id in request_ids if request_id in self._requests]
        self._waiting |= {request_id: self._requests[request_id] for request_id in moved}
        return moved, failed

    def fail(self, error: Exception) -> None:
        """End all requests with an error."""
        requests, self._requests = self._requests, {}
        self._groups.clear()
        self._waiting.clear()
        for request in requests.values():
            request.outputs.fail(error)
