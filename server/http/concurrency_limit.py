"""ConcurrencyLimit: limit the number of concurrent requests, before their bodies are read."""

from collections import Counter
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from caravan.server.generation.context import NO_KEY, RESUME_HEADER, SCOPE_KEY_NAME
from caravan.server.generation.fair_share import has_room
from caravan.server.http.body_memory import SCOPE_BODY, BodyMemory
from caravan.server.http.errors import ApiError, overloaded, unavailable
from caravan.server.observe.metrics import Metrics

RETRY_SECONDS = 1
Wrap = Callable[[ASGIApp], ASGIApp]


class ConcurrencyLimit:
    """Counts concurrent requests; closed when the server shuts down."""

    def __init__(self, max_requests: int, bodies: BodyMemory | None = None) -> None:
        """By default `bodies` has its default limit."""
        self.requests_by_key: Counter[str] = Counter()
        self.bodies = bodies or BodyMemory()
        self.is_open = True
        self.max_requests = max_requests

    @property
    def num_requests(self) -> int:
        """The number of requests of all keys."""
        return self.requests_by_key.total()

    def close(self) -> None:
        """Reject all further requests."""
        self.is_open = False


class ConcurrencyLimitMiddleware:
    """ASGI middleware that applies the limit before a body is read.

    GET and HEAD requests are exempt. Requests with `x-caravan-resume` go to the application `resumable(app)`.
    """

    def __init__(self, app: ASGIApp, *, concurrency_limit: ConcurrencyLimit, metrics: Metrics, resumable: Wrap) -> None:
        self._app, self._resumable_app = app, resumable(app)
        self._limit = concurrency_limit
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        key_name = scope.get(SCOPE_KEY_NAME, NO_KEY)
        rejection = self._rejection(key_name)
        if rejection is not None:
            rejection.is_body_unread = True
            await rejection.response(scope)(scope, receive, send)
            return
        self._limit.requests_by_key[key_name] += 1
        reservation = self._limit.bodies.reserve(key_name)
        scope[SCOPE_BODY] = reservation
        is_resumable = any(name == RESUME_HEADER for name, _ in scope["headers"])
        try:
            await (self._resumable_app if is_resumable else self._app)(scope, receive, send)
        finally:
            reservation.release()
            if reservation.was_rejected:
                self._metrics.count_rejection("body_memory")
            self._limit.requests_by_key[key_name] -= 1
            if not self._limit.requests_by_key[key_name]:
                del self._limit.requests_by_key[key_name]

    def _rejection(self, key_name: str) -> ApiError | None:
        if not self._limit.is_open:
            return unavailable("The server is shutting down. Try again later.")
        if not has_room(self._limit.requests_by_key, key_name, 1, self._limit.max_requests):
            self._metrics.count_rejection("queue_full")
            return overloaded(f"It is at its limit of {self._limit.max_requests} concurrent requests.", RETRY_SECONDS)
        return None
