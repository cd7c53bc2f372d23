"""InFlightRequests: every unfinished request, with what another engine needs to resume it."""

import time

import msgspec

from caravan.scheduler.messages import Request, SequenceOutput
from caravan.server.engine.output_queue import OutputQueue

QUARANTINE_CRASHES = 2  # in a row with a request in the batch, after which it runs alone
MAX_CRASHES = 5  # after which the request fails; it ran alone for the last three
GIVEN_UP = f"The engine crashed {MAX_CRASHES} times in a row while it processed this request."


class InFlightRequest:
    """A request with the tokens generated so far."""

    def __init__(self, request: Request, outputs: OutputQueue, group: int) -> None:
        """`group` is the number of the HTTP request that the sequence belongs to."""
        self.outputs = outputs
        self.group = group
        self.is_line = request.urgency > 0  # of a batch: nobody waits for it
        self.adapter = request.adapter
        self._request = request
        self._output_token_ids: list[int] = []
        self._num_prompt_logprobs = 0  # sent to the reader
        self._num_repeated = 0  # prompt_logprobs that a new engine repeats

    def put(self, output: SequenceOutput) -> None:
        """Send the output of a step to the reader, without what an earlier engine has sent already."""
        if output.token_ids:
            self._output_token_ids += output.token_ids
        if output.prompt_logprobs:
            num_known = min(self._num_repeated, len(output.prompt_logprobs))
            self._num_repeated -= num_known
            output = msgspec.structs.replace(output, prompt_logprobs=output.prompt_logprobs[num_known:])
            self._num_prompt_logprobs += len(output.prompt_logprobs)
        self.outputs.put(output)

    def resumed(self) -> Request:
        """Return the request for a new engine, which resumes it after the last generated token."""
        if not self._output_token_ids:
            self._num_repeated = self._num_prompt_logprobs
            return self._request
        # Log-probabilities of the prompt are complete before the first token.
        params = msgspec.structs.replace(self._request.params, num_prompt_logprobs=None, logprob_token_ids=())
        return msgspec.structs.replace(self._request, params=params, output_token_ids=[*self._output_token_ids])

    def fail(self) -> None:
        """End the request with an error."""
        request_id = self._request.request_id
        self.outputs.put(SequenceOutput(request_id=request_id, token_ids=[], finish_reason="error", error=GIVEN_UP))


class CrashGroup:
    """The requests of one HTTP request: its choices and prompts."""

    def __init__(self) -> None:
        self.request_ids: set[int] = set()
        self.crash_count = 0  # with one of them in the batch, since all were cleared
        self._uncleared: set[int] = set()  # were in such a batch and got no token since

    @property
    def is_quarantined(self) -> bool:
        """Whether the group runs alone in the engine."""
        return self.crash_count >= QUARANTINE_CRASHES

    def count_crash(self, batch: set[int]) -> None:
        """Count a crash of the engine with these requests in the batch."""
        if in_batch := self.request_ids & batch:
            self.crash_count += 1
            self._uncleared |= in_batch

    def clear(self, request_id: int) -> None:
        """Clear a request that got a token or ended."""
        self._uncleared.discard(request_id)
        if not self._uncleared:
            self.crash_count = 0


class InFlightRequests:
    """The requests that the engine has, and those that it gets next after a restart.

    A request that crashes the engine would do so after every restart, and block the others. A request that was in the
    batch at two crashes in a row, without a new token in between, is quarantined: the next engine gets it alone. The
    choices and prompts of one HTTP request form a group whose crashes are counted together: with separate counts, one
    request could crash the engine once per choice. When each of them has got a token or ended, the group is cleared and
    the other requests are released. A group fails after three crashes in quarantine; with fewer, engines that are
    killed from outside could fail a harmless request.
    """

    def __init__(self) -> None:
        self._requests: dict[int, InFlightRequest] = {}  # in order of arrival
        self._groups: dict[int, CrashGroup] = {}  # of all requests
        self._batch: list[int] = []  # as last reported by the engine
        self._held: dict[int, InFlightRequest] = {}  # not sent to the engine yet
        self._postponed: dict[int, InFlightRequest] = {}  # for the next engine; not in _held
        self._alone: int | None = None  # the quarantined group that runs now
        self.last_used_seconds = time.monotonic()  # when a request was added or ended

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def num_active(self) -> int:
        """The number of requests that this engine has or gets."""
        return len(self._requests) - len(self._postponed)

    @property
    def num_urgent(self) -> int:
        """The number of requests that are no lines of batches."""
        return sum(not request.is_line for request in self._requests.values())

    def adapters(self) -> set[str]:
        """Return the names of the adapters that unfinished requests have."""
        return {request.adapter for request in self._requests.values()}

    @property
    def is_holding(self) -> bool:
        """Whether some requests are not sent to the engine yet."""
        return bool(self._held)

    def add(self, request: InFlightRequest, *, is_postponed: bool = False) -> None:
        """Add a new request, which `released` will return; a postponed one after `end_postponement`."""
        request_id = request.outputs.request_id
        self.last_used_seconds = time.monotonic()
        self._requests[request_id] = request
        (self._postponed if is_postponed else self._held)[request_id] = request
        self._groups.setdefault(request.group, CrashGroup()).request_ids.add(request_id)

    def released(self) -> list[InFlightRequest]:
        """Return the requests to send to the engine now, each once."""
        if self._alone is None:
            held = (request.group for request in self._held.values())
            self._alone = next((group for group in held if self._groups[group].is_quarantined), None)
        released = [request for request in self._held.values() if self._alone in (None, request.group)]
        for request in released:
            del self._held[request.outputs.request_id]
        return released

    def end_postponement(self) -> None:
        """Let `released` return the postponed requests."""
        self._held |= self._postponed
        self._postponed.clear()

    def begin_batch(self, request_ids: list[int]) -> None:
        """Store the requests of the step that begins now."""
        self._batch = request_ids

    def put(self, output: SequenceOutput) -> None:
        """Pass an output to its request; outputs of dropped requests are ignored."""
        request = self._requests.get(output.request_id)
        if request is None:
            return
        if output.finish_reason is not None:
            self._remove(output.request_id)
        elif output.token_ids and self._groups[request.group].crash_count:  # else there is nothing to clear
            self._clear(request)
        request.put(output)

    def drop(self, request_id: int) -> bool:
        """Remove a request that is no longer read; return whether the engine has it."""
        is_held = request_id in self._held or request_id in self._postponed
        self._remove(request_id)
        return not is_held

    def lose_engine(self) -> int:
        """Count a crash, and fail requests with too many of them; return the number of requests left."""
        batch, self._batch = set(self._batch), []
        self._alone = None
        for group in [*self._groups.values()]:
            group.count_crash(batch)
            if group.crash_count >= MAX_CRASHES:
                for request_id in sorted(group.request_ids):
                    request = self._requests[request_id]
                    self._remove(request_id)
                    request.fail()
        self._held = {one: request for one, request in self._requests.items() if one not in self._postponed}
        return len(self._held)

    def fail(self, error: Exception) -> None:
        """End all requests with an error."""
        requests, self._requests = self._requests, {}
        self._groups.clear()
        self._held.clear()
        self._postponed.clear()
        self._alone = None
        for request in requests.values():
            request.outputs.fail(error)

    def _remove(self, request_id: int) -> None:
        request = self._requests.pop(request_id)
        self._held.pop(request_id, None)
        self._postponed.pop(request_id, None)
        self.last_used_seconds = time.monotonic()
        group = self._groups[request.group]
        group.request_ids.discard(request_id)
        self._clear(request)
        if not group.request_ids:
            del self._groups[request.group]

    def _clear(self, request: InFlightRequest) -> None:
        """Clear a request; if that clears the quarantined group, the others can be released."""
        group = self._groups[request.group]
        group.clear(request.outputs.request_id)
        if request.group == self._alone and not group.is_quarantined:
            self._alone = None
