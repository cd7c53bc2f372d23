"""RequestContext: the API key, priority and deadline of a request; created once by the route."""

import re
import time
from dataclasses import dataclass, field

from starlette.types import Scope

from caravan.server.generation.errors import DeadlineExceeded

NO_KEY = ""  # the key name of all requests if the server has no keys
TIMEOUT_HEADER = "x-request-timeout-ms"
RESUME_HEADER = b"x-caravan-resume"
SCOPE_KEY_NAME = "caravan.key_name"  # ASGI scope: the name of the API key, set by the authentication
SCOPE_KEY_DIGEST = "caravan.key_digest"  # ASGI scope: the digest of the API key itself, in hexadecimal
SCOPE_MIN_PRIORITY = "caravan.min_priority"  # ASGI scope: the lowest priority that is effective across keys
SCOPE_URGENCY = "caravan.urgency"  # ASGI scope: the urgency of a line of a batch
SCOPE_REQUEST_ID = "caravan.request_id"  # ASGI scope: the id of the HTTP request
SCOPE_METRICS = "caravan.metrics"  # ASGI scope: the Metrics of the model that the request chose
SCOPE_CANCELLATION = "caravan.cancellation"  # ASGI scope: the Cancellation of a resumable response
SCOPE_RECORD = "caravan.record"  # ASGI scope: the RequestRecord, set when a generation starts

_MILLISECONDS = re.compile(rb"[1-9][0-9]{0,8}")


class InvalidTimeout(ValueError):
    """The header with the time limit is invalid; the text is for the client."""


@dataclass(frozen=True)
class RequestContext:
    """The properties of a request that the queue, the prefix cache and the deadline depend on."""

    key_name: str = NO_KEY
    priority: int = 0  # among the requests of the key; lower values are scheduled first
    cache_salt: str = ""  # cached prefixes are only shared between requests with the same salt
    timeout_seconds: float | None = None  # from arrival to the last token; None: no limit
    request_id: str = ""  # of the HTTP request
    urgency: int = 0  # like priority, but across all keys; positive: a line of a batch, for which nobody waits
    arrived_at_seconds: float = field(default_factory=time.monotonic)

    def seconds_left(self) -> float | None:
        """Return the seconds until the deadline, None if there is none."""
        if self.timeout_seconds is None:
            return None
        return self.arrived_at_seconds + self.timeout_seconds - time.monotonic()

    def deadline_exceeded(self) -> DeadlineExceeded:
        """Return the error for a response that missed its deadline."""
        return DeadlineExceeded(f"The response was not complete within {self.timeout_seconds:g} s.", 1)


def key_name_of(scope: Scope) -> str:
    """Return the name of the request's API key."""
    name: str = scope.get(SCOPE_KEY_NAME, NO_KEY)
    return name


def request_context(scope: Scope, priority: int, cache_salt: str, arrived_at_seconds: float) -> RequestContext:
    """Return the context of an HTTP request; raises InvalidTimeout.

    Keys never share cached prefixes, so timing reveals nothing about prompts of other keys. Servers may share them by a
    file: the salt has the digest of a key, as names repeat, and begins with an empty line if there are no keys.
    """
    return RequestContext(
        key_name_of(scope),
        priority,
        f"{scope.get(SCOPE_KEY_DIGEST, '')}\n{cache_salt}",
        _timeout_seconds(scope),
        scope.get(SCOPE_REQUEST_ID, ""),
        urgency=scope.get(SCOPE_URGENCY) or min(max(priority, scope.get(SCOPE_MIN_PRIORITY, 0)), 0),
        arrived_at_seconds=arrived_at_seconds,
    )


def _timeout_seconds(scope: Scope) -> float | None:
    values = [value for name, value in scope["headers"] if name == TIMEOUT_HEADER.encode()]
    if not values:
        return None
    if len(values) > 1 or not _MILLISECONDS.fullmatch(values[0]):
        raise InvalidTimeout(f"`{TIMEOUT_HEADER}` must be an integer from 1 to 999999999, in milliseconds.")
    return int(values[0]) / 1000
