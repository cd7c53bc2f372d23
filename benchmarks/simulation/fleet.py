"""Fleet: replicas behind a router, in virtual time. The same arrivals give the same figures, to the last bit."""

import heapq
from collections.abc import Callable, Sequence

from benchmarks.simulation.api_cost import ApiCost
from benchmarks.simulation.arrivals import Arrival, Prompts
from benchmarks.simulation.clock import VirtualClock
from benchmarks.simulation.journal import Journal
from benchmarks.simulation.replica import Replica, simulated_replica
from benchmarks.simulation.router import Router, least_outstanding
from benchmarks.simulation.step_cost import StepCost
from caravan.scheduler.config import EngineConfig

OnStep = Callable[[int, float, Replica], object]  # index of the replica, seconds of the step that has started


class Fleet:
    """Discrete events: arrivals, and ends of steps."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        clock: VirtualClock,
        api: ApiCost,
        router: Router = least_outstanding,
        on_step: OnStep = lambda *_: None,
    ) -> None:
        """`clock` is that of the replicas; each replica has an API process of its own."""
        self.journal = Journal(len(replicas))
        self._replicas = replicas
        self._clock = clock
        self._api = api
        self._router = router
        self._on_step = on_step
        self._api_free_at = [0.0] * len(replicas)  # when the API process has delivered all tokens
        self._ends: list[tuple[float, int, float]] = []  # heap of steps: end, replica, seconds

    def run(self, arrivals: Sequence[Arrival], prompts: Prompts) -> Journal:
        """Run until the last request has ended."""
        next_arrival = 0
        while next_arrival < len(arrivals) or self._ends:
            if next_arrival < len(arrivals) and (
                not self._ends or arrivals[next_arrival].seconds <= self._ends[0][0]
            ):  # an arrival in the moment of an end is seen by the next step, as by an engine
                self._arrive(arrivals[next_arrival], prompts)
                next_arrival += 1
                is_last = next_arrival == len(arrivals) or arrivals[next_arrival].seconds > self._clock.now
                if is_last:  # of those that arrive at the same time
                    self._start_steps(range(len(self._replicas)) if len(self._replicas) > 1 else (0,))
            else:
                self._start_steps((self._end_step(),))
        return self.journal

    def _arrive(self, arrival: Arrival, prompts: Prompts) -> None:
        self._clock.move_to(arrival.seconds)
        request = prompts.request(arrival)
        config = self._replicas[0].scheduler.config
        num_tokens = len(request.prompt_token_ids)
        if num_tokens >= config.max_model_len:  # the server rejects it
            self.journal.num_rejected += 1
            return
        self.journal.arrive(arrival.request_id, arrival.seconds, num_tokens)
        self._replicas[self._router(arrival.request_id, self._replicas)].submit(request)

    def _start_steps(self, indices: Sequence[int]) -> None:
        """Start a step of each of these replicas that can."""
        for index in indices:
            replica = self._replicas[index]
            if replica.is_ready:
                seconds = replica.start_step()
                self._on_step(index, seconds, replica)
                heapq.heappush(self._ends, (self._clock.now + seconds, index, seconds))

    def _end_step(self) -> int:
        """End the step that ends next, deliver its tokens in order, and return its replica."""
        now, index, seconds = heapq.heappop(self._ends)
        self._clock.move_to(now)
        output = self._replicas[index].end_step()
        self.journal.count_step(output.stats, seconds)
        delivered = max(now, self._api_free_at[index])
        for one in output.outputs:
            num_tokens = len(one.token_ids)
            delivered += self._api.token_seconds * num_tokens
            is_last = one.finish_reason is not None
            at_client = delivered + self._api.request_seconds
            self.journal.deliver(one.request_id, at_client, num_tokens, is_last=is_last)
        self._api_free_at[index] = delivered
        return index


def simulate(
    arrivals: Sequence[Arrival],
    prompts: Prompts,
    *,
    config: EngineConfig,
    cost: StepCost,
    api: ApiCost,
    num_replicas: int = 1,
    router: Router = least_outstanding,
) -> Journal:
    """Return what happens to arrivals at a new fleet."""
    clock = VirtualClock()
    replicas = [simulated_replica(config, cost, clock) for _ in range(num_replicas)]
    return Fleet(replicas, clock, api, router).run(arrivals, prompts)
