"""InFlightRequests: every request that has not ended, with all it takes to give it to another engine."""

import msgspec

from caravan.scheduler.messages import Request, SequenceOutput
from caravan.server.engine.output_queue import OutputQueue

QUARANTINE_CRASHES = 2  # engines that ended in a row with a request in their batch: from now on it runs alone
MAX_CRASHES = 5  # the last three while it ran alone: it is given up
GIVEN_UP = f"The engine ended {MAX_CRASHES} times in a row while it worked on this request."


class InFlightRequest:
    """A request with the tokens it has so far."""

    def __init__(self, request: Request, stream: OutputQueue, group: int) -> None:
        """`group` is the number of the HTTP request that it belongs to."""
        self.stream = stream
        self.group = group
        self._request = request
        self._output_token_ids: list[int] = []
        self._num_prompt_logprobs = 0  # that the reader has
        self._num_repeated = 0  # prompt_logprobs to come that the reader has

    def put(self, output: SequenceOutput) -> None:
        """Hand the reader what a step did, without what it knows from an earlier engine."""
        if output.token_ids:
            self._output_token_ids += output.token_ids
        if output.prompt_logprobs:
            num_known = min(self._num_repeated, len(output.prompt_logprobs))
            self._num_repeated -= num_known
            output = msgspec.structs.replace(output, prompt_logprobs=output.prompt_logprobs[num_known:])
            self._num_prompt_logprobs += len(output.prompt_logprobs)
        self.stream.put(output)

    def again(self) -> Request:
        """Return the request as another engine gets it: behind the tokens it has."""
        if not self._output_token_ids:
            self._num_repeated = self._num_prompt_logprobs
            return self._request
        # The first token came after the whole prompt was read.
        params = msgspec.structs.replace(self._request.params, num_prompt_logprobs=None)
        return msgspec.structs.replace(self._request, params=params, output_token_ids=[*self._output_token_ids])

    def give_up(self) -> None:
        """End the request with an error."""
        request_id = self._request.request_id
        self.stream.put(SequenceOutput(request_id=request_id, token_ids=[], finish_reason="error", error=GIVEN_UP))


class _CrashGroup:
    """The requests of one HTTP request: its choices and prompts."""

    def __init__(self) -> None:
        self.request_ids: set[int] = set()
        self.crash_count = 0  # of engines that had one of them in their batch, since all of them were cleared
        self._doubtful: set[int] = set()  # those that were in such a batch and had no token since

    @property
    def is_quarantined(self) -> bool:
        """It runs without others."""
        return self.crash_count >= QUARANTINE_CRASHES

    def count_crash(self, batch: set[int]) -> None:
        """Count the end of an engine that worked on these requests."""
        if here := self.request_ids & batch:
            self.crash_count += 1
            self._doubtful |= here

    def clear(self, request_id: int) -> None:
        """Count no death against a request that had a token or ended."""
        self._doubtful.discard(request_id)
        if not self._doubtful:
            self.crash_count = 0


class InFlightRequests:
    """Which requests the engine has, and which it gets next after another one ended.

    A request that makes the engine end would do so again after each start, and the others would never get further. A
    request is suspected that was in the batch at two ends in a row and had no new token in between. Those of one
    group, the choices and prompts of one HTTP request, count as one: else they could end as many engines as there
    are. They are given to the next engine and no others; with the first token of each one in doubt, or its end, they
    are cleared and the others follow. They are given up when they were alone with three engines that ended: with
    fewer, engines that are killed from outside could make them look guilty.
    """

    def __init__(self) -> None:
        self._requests: dict[int, InFlightRequest] = {}  # in the order they came
        self._groups: dict[int, _CrashGroup] = {}  # of all these
        self._batch: list[int] = []  # what the engine last said it works on
        self._held: dict[int, InFlightRequest] = {}  # what the engine does not have yet
        self._alone: int | None = None  # the group that runs because it is suspected

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def is_holding(self) -> bool:
        """Some requests wait to be given to the engine."""
        return bool(self._held)

    def add(self, live: InFlightRequest) -> None:
        """Add a new request; `released` says when the engine gets it."""
        request_id = live.stream.request_id
        self._requests[request_id] = self._held[request_id] = live
        self._groups.setdefault(live.group, _CrashGroup()).request_ids.add(request_id)

    def released(self) -> list[InFlightRequest]:
        """Return what the engine gets now, once."""
        if self._alone is None:
            held = (live.group for live in self._held.values())
            self._alone = next((group for group in held if self._groups[group].is_quarantined), None)
        released = [live for live in self._held.values() if self._alone in (None, live.group)]
        for live in released:
            del self._held[live.stream.request_id]
        return released

    def begin_batch(self, request_ids: list[int]) -> None:
        """Store what the step works on that begins now."""
        self._batch = request_ids

    def put(self, output: SequenceOutput) -> None:
        """Hand a request what a step did for it; one that was dropped meanwhile is unknown."""
        live = self._requests.get(output.request_id)
        if live is None:
            return
        if output.finish_reason is not None:
            self._remove(output.request_id)
        elif output.token_ids:
            self._clear(live)
        live.put(output)

    def drop(self, request_id: int) -> bool:
        """Forget a request that nobody reads any more; return whether the engine has it."""
        is_held = request_id in self._held
        self._remove(request_id)
        return not is_held

    def lose_engine(self) -> int:
        """Count the end of the engine, and give up requests it ended with too often; return how many are left."""
        batch, self._batch = set(self._batch), []
        self._alone = None
        for group in [*self._groups.values()]:
            group.count_crash(batch)
            if group.crash_count >= MAX_CRASHES:
                for request_id in sorted(group.request_ids):
                    live = self._requests[request_id]
                    self._remove(request_id)
                    live.give_up()
        self._held = dict(self._requests)
        return len(self._requests)

    def fail(self, error: Exception) -> None:
        """End all requests with an error."""
        requests, self._requests = self._requests, {}
        self._groups.clear()
        self._held.clear()
        self._alone = None
        for live in requests.values():
            live.stream.fail(error)

    def _remove(self, request_id: int) -> None:
        live = self._requests.pop(request_id)
        self._held.pop(request_id, None)
        group = self._groups[live.group]
        group.request_ids.discard(request_id)
        self._clear(live)
        if not group.request_ids:
            del self._groups[live.group]

    def _clear(self, live: InFlightRequest) -> None:
        """Count no death against a request; if that clears the group that runs alone, the others follow."""
        group = self._groups[live.group]
        group.clear(live.stream.request_id)
        if live.group == self._alone and not group.is_quarantined:
            self._alone = None
