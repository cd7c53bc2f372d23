"""KeptResponses: the responses that clients can read again, within limits, found by the key that requested them."""

from collections import Counter
from collections.abc import Callable

from starlette.types import Scope

from caravan.server.generation.context import SCOPE_KEY_DIGEST, SCOPE_REQUEST_ID, key_name_of
from caravan.server.generation.fair_share import has_room
from caravan.server.http.errors import ApiError, invalid, overloaded
from caravan.server.resumption.kept_response import KeptResponse
from caravan.server.resumption.settings import ResumeLimits

_RETRY_SECONDS = 5
_WAY_OUT = "Send the request without `x-caravan-resume` and `background`."


class KeptResponses:
    """All kept responses of a server. Another key does not see them, whichever id it sends."""

    def __init__(self, limits: ResumeLimits | None = None, on_reject: Callable[[], object] = lambda: None) -> None:
        """`on_reject` is called for each request that a limit rejects."""
        self.limits = limits or ResumeLimits()
        self._on_reject = on_reject
        self._kept: dict[tuple[str, str], KeptResponse] = {}  # by key and request id, the oldest first
        self._key_names: dict[KeptResponse, str] = {}

    @property
    def num_responses(self) -> int:
        """The number of kept responses, running ones included."""
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """The bytes of all kept events."""
        return sum(kept.num_bytes for kept in self._kept.values())

    def is_kept(self, scope: Scope) -> bool:
        """Return whether the response to a request is kept."""
        kept = self._kept.get(_place(scope, scope[SCOPE_REQUEST_ID]))
        return kept is not None and kept.is_of(scope)

    def open(self, scope: Scope) -> KeptResponse:
        """Return the place of the response to a request; raises ApiError 400, 409 or 429.

        The oldest finished responses without readers, of the key that has most, make room if the limits are reached.
        """
        if not self.limits.max_streams:
            raise invalid(f"This server keeps no responses to be read again (--resume-streams 0). {_WAY_OUT}")
        place = _place(scope, scope[SCOPE_REQUEST_ID])
        if place in self._kept:
            message = (
                "The response to this `x-request-id` is kept: read GET /v1/requests/ID/stream, or send another id."
            )
            raise ApiError(409, message, param="x-request-id", code="request_id_in_use")
        self._make_room()
        key_name = key_name_of(scope)
        if not has_room(self._num_by_key(), key_name, 1, self.limits.max_streams):
            raise self._full(f"It is at its limit of {self.limits.max_streams} resumable responses.")
        if self.num_bytes >= self.limits.max_bytes:
            raise self._full("The memory for resumable responses is full.")
        kept = KeptResponse(
            scope,
            max_bytes=self.limits.max_stream_bytes,
            idle_seconds=self.limits.idle_seconds,
            on_drop=lambda dropped: self._forget(place, dropped),
        )
        self._kept[place] = kept
        self._key_names[kept] = key_name
        return kept

    def find(self, scope: Scope, name: str) -> KeptResponse | None:
        """Return the response of the request or response id `name` that the key of `scope` requested."""
        owner, _ = place = _place(scope, name)
        return self._kept.get(place) or next(
            (kept for (digest, _), kept in self._kept.items() if digest == owner and kept.response_id == name), None
        )

    def _full(self, fact: str) -> ApiError:
        self._on_reject()
        return overloaded(f"{fact} {_WAY_OUT}", _RETRY_SECONDS)

    def _num_by_key(self) -> Counter[str]:
        return Counter(self._key_names.values())

    def _make_room(self) -> None:
        """Drop finished responses without readers while there is no room for another response."""
        while len(self._kept) >= self.limits.max_streams or self.num_bytes >= self.limits.max_bytes:
            numbers = self._num_by_key()
            idle = [kept for kept in self._kept.values() if kept.has_ended and not kept.num_readers]
            if not idle:
                return
            max(idle, key=lambda kept: numbers[self._key_names[kept]]).drop()  # the oldest of equal ones

    def _forget(self, place: tuple[str, str], kept: KeptResponse) -> None:
        del self._kept[place], self._key_names[kept]


def _place(scope: Scope, name: str) -> tuple[str, str]:
    return scope.get(SCOPE_KEY_DIGEST, ""), name
