"""Member: a replica that is connected, with the requests that it has."""

import time
from collections.abc import Callable

from caravan.scheduler.messages import EngineReady, SequenceOutput, StepOutput, StepStats
from caravan.server.engine.in_flight import InFlightRequest
from caravan.server.engine.loop_clock import LoopClock, Silence
from caravan.server.replicas.known_prefixes import KnownPrefixes, extend_hashes
from caravan.server.replicas.replica import Replica
from caravan.server.replicas.replica_sender import ReplicaSender


class Member:
    """One connection to a replica, from the report of its engine to the engine's end."""

    def __init__(
        self, replica: Replica, connection: str, report: EngineReady, clock: LoopClock, on_loss: Callable[[str], None]
    ) -> None:
        self.replica = replica
        self.name = replica.name
        self.config = report.config
        self.known = KnownPrefixes(report.config.num_blocks)
        self.silence = Silence(clock)
        self.is_draining = False
        self.reserved_for: int | None = None  # the quarantined group that it is to run alone
        self.batch: set[int] = set()  # as last reported
        self.stats = StepStats()
        self.requests: dict[int, InFlightRequest] = {}
        self.sender = ReplicaSender(replica, connection, on_loss)
        self._hashes: dict[int, list[bytes]] = {}  # of the full blocks of each request's text
        self._clock_offset_seconds = float("inf")  # of this clock before the replica's

    @property
    def num_requests(self) -> int:
        """The number of its unfinished requests, those of other API processes included."""
        return max(len(self.requests), self.stats.num_running + self.stats.num_waiting)

    def hear(self, sent_at_seconds: float) -> None:
        """Record that messages came, and compare the clocks: the least delay seen is taken for none."""
        self.silence.end()
        self._clock_offset_seconds = min(self._clock_offset_seconds, time.monotonic() - sent_at_seconds)

    def here(self, replica_seconds: float) -> float:
        """Return a time of the replica's clock on this process's; 0 stays 0."""
        return replica_seconds + self._clock_offset_seconds if replica_seconds else 0.0

    def take(self, request: InFlightRequest, hashes: list[bytes]) -> None:
        """Send it a request with these block hashes."""
        request_id = request.outputs.request_id
        self.requests[request_id] = request
        self._hashes[request_id] = hashes
        self.known.add(hashes)
        self.sender.put(request.resumed())

    def drop(self, request_id: int) -> None:
        """Forget a request that has ended or is no longer read."""
        self.requests.pop(request_id, None)
        self._hashes.pop(request_id, None)

    def end(self, request_id: int) -> None:
        """Forget a request that is complete, and record that its whole text is cached."""
        request = self.requests[request_id].resumed()
        hashes = self._hashes[request_id]
        tokens = [*request.prompt_token_ids, *request.output_token_ids[:-1]]  # the last one is never computed
        extend_hashes(hashes, tokens, request.cache_salt, self.config.block_size)
        self.known.add(hashes)
        self.drop(request_id)

    def receive(self, output: StepOutput) -> list[SequenceOutput]:
        """Store the statistics of a step; return its outputs of requests that it has."""
        self.stats = output.stats
        return [one for one in output.outputs if one.request_id in self.requests]


def difference(report: EngineReady, first: EngineReady) -> str:
    """Return why answers of two engines could differ, empty if they cannot."""
    for name, one, other in (
        ("vocabulary", report.vocab_size, first.vocab_size),
        ("number of parameters", report.num_parameters, first.num_parameters),
        ("form of the weights", report.weights, first.weights),
        ("type of the KV cache", report.kv_cache_dtype, first.kv_cache_dtype),
        ("block size", report.config.block_size, first.config.block_size),
        ("longest request", report.config.max_model_len, first.config.max_model_len),
    ):
        if one != other:
            return f"its {name} is {one}, but that of the first replica is {other}"
    return ""
