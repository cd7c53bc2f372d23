"""RequestContext: who asks, how urgently, and until when; made once by the route and handed on whole."""

import re
import time
from dataclasses import dataclass, field

from starlette.types import Scope

from caravan.server.generation.errors import DeadlineExceeded

NO_KEY = ""  # the key name of all requests where there are no keys
TIMEOUT_HEADER = "x-request-timeout-ms"
SCOPE_KEY_NAME = "caravan.key_name"  # ASGI scope: the name of the API key, set by the authentication
SCOPE_MIN_PRIORITY = "caravan.min_priority"  # ASGI scope: the lowest priority that counts beyond the key
SCOPE_REQUEST_ID = "caravan.request_id"  # ASGI scope: the id of the HTTP request
SCOPE_RECORD = "caravan.record"  # ASGI scope: the RequestRecord, set when a generation starts

_MILLISECONDS = re.compile(rb"[1-9][0-9]{0,8}")


class InvalidTimeout(ValueError):
    """The header with the time limit cannot be read; the text is for the client."""


@dataclass(frozen=True)
class RequestContext:
    """What the queue, the prefix cache and the deadline need to know of a request."""

    key_name: str = NO_KEY
    priority: int = 0  # among the requests of the key; lower is sooner
    cache_salt: str = ""  # cached prefixes are shared within one salt only
    timeout_seconds: float | None = None  # from arrival to the last token; None: no limit
    request_id: str = ""  # of the HTTP request
    urgency: int = 0  # before the requests of all keys; the priority, where the key may set it
    arrived_at_seconds: float = field(default_factory=time.monotonic)

    def seconds_left(self) -> float | None:
        """Return how long the client still waits, None if it set no limit."""
        if self.timeout_seconds is None:
            return None
        return self.arrived_at_seconds + self.timeout_seconds - time.monotonic()

    def deadline_exceeded(self) -> DeadlineExceeded:
        """Return the error of an answer that was not complete in time."""
        return DeadlineExceeded(f"The answer was not complete within {self.timeout_seconds:g} s.", 1)


def key_name_of(scope: Scope) -> str:
    """Return the name of the request's API key."""
    name: str = scope.get(SCOPE_KEY_NAME, NO_KEY)
    return name


def request_context(scope: Scope, priority: int, cache_salt: str, arrived_at_seconds: float) -> RequestContext:
    """Return the context of an HTTP request; raises InvalidTimeout.

    Keys never share cached prefixes: none can find out by timing what another has sent.
    """
    name = key_name_of(scope)
    return RequestContext(
        name,
        priority,
        f"{name}\n{cache_salt}" if name != NO_KEY else cache_salt,
        _timeout_seconds(scope),
        scope.get(SCOPE_REQUEST_ID, ""),
        urgency=min(max(priority, scope.get(SCOPE_MIN_PRIORITY, 0)), 0),
        arrived_at_seconds=arrived_at_seconds,
    )


def _timeout_seconds(scope: Scope) -> float | None:
    values = [value for name, value in scope["headers"] if name == TIMEOUT_HEADER.encode()]
    if not values:
        return None
    if len(values) > 1 or not _MILLISECONDS.fullmatch(values[0]):
        raise InvalidTimeout(f"`{TIMEOUT_HEADER}` must be a number of milliseconds, 1 to 999999999.")
    return int(values[0]) / 1000
