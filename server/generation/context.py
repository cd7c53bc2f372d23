"""RequestContext: on whose behalf a request runs, and how soon."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import Scope

from caravan.server.observe.request_end import RequestEnd

NO_KEY = ""  # the name under which all ask where there are no keys
TIMEOUT_HEADER = "x-request-timeout-ms"
SCOPE_KEY_NAME = "caravan.key_name"  # where the guard leaves the name of the key that it let through
SCOPE_MIN_PRIORITY = "caravan.min_priority"  # where it leaves the lowest priority that counts beyond the key
SCOPE_REQUEST_ID = "caravan.request_id"  # where the edge leaves the id of the exchange
SCOPE_END = "caravan.end"  # where it is left what became of the request

_MILLISECONDS = re.compile(rb"[1-9][0-9]{0,8}")


class InvalidTimeout(ValueError):
    """The header with the time limit cannot be read; the text is for the client."""


@dataclass(frozen=True)
class RequestContext:
    """What the queue and the prefix cache know of who asks."""

    key_name: str = NO_KEY
    priority: int = 0  # among the requests of the key; lower is sooner
    cache_salt: str = ""  # prefix blocks are shared within one only
    timeout_seconds: float | None = None  # from arrival; a later answer is of no use
    request_id: str = ""  # of the HTTP exchange
    urgency: int = 0  # before the requests of all keys; as low as the priority, but not lower than the key may have
    on_end: Callable[[RequestEnd], None] = field(default=lambda _: None, compare=False)


def key_name_of(scope: Scope) -> str:
    """Return the name of the key that a request brought."""
    name: str = scope.get(SCOPE_KEY_NAME, NO_KEY)
    return name


def request_context(scope: Scope, priority: int, cache_salt: str) -> RequestContext:
    """Return who asks; raises InvalidTimeout for a time limit that is none.

    Keys never share cached prefixes, so that none can find out by time what another has sent.
    """
    name = key_name_of(scope)

    def remember(end: RequestEnd) -> None:
        scope[SCOPE_END] = end

    salt = f"{name}\n{cache_salt}" if name != NO_KEY else cache_salt
    return RequestContext(
        name,
        priority,
        salt,
        _timeout_seconds(scope),
        scope.get(SCOPE_REQUEST_ID, ""),
        urgency=min(max(priority, scope.get(SCOPE_MIN_PRIORITY, 0)), 0),
        on_end=remember,
    )


def _timeout_seconds(scope: Scope) -> float | None:
    values = [value for name, value in scope["headers"] if name == TIMEOUT_HEADER.encode()]
    if not values:
        return None
    if len(values) > 1 or not _MILLISECONDS.fullmatch(values[0]):
        raise InvalidTimeout(f"`{TIMEOUT_HEADER}` must be a number of milliseconds, 1 to 999999999.")
    return int(values[0]) / 1000
