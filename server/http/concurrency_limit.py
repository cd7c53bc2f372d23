"""Door: how many requests are inside the server, and whether more may come in."""

from collections import Counter

from starlette.types import ASGIApp, Receive, Scope, Send

from caravan.server.generation.context import NO_KEY, SCOPE_KEY_NAME
from caravan.server.generation.fair_share import has_room
from caravan.server.http.body_memory import SCOPE_BODY, BodyMemory
from caravan.server.http.errors import ApiError, overloaded, unavailable
from caravan.server.observe.metrics import Metrics

RETRY_SECONDS = 1


class ConcurrencyLimit:
    """Counts what is inside, and is closed for good when the server is to end."""

    def __init__(self, max_inside: int, bodies: BodyMemory | None = None) -> None:
        """Without `bodies` their memory has its default size."""
        self.inside_of: Counter[str] = Counter()  # requests by key
        self.bodies = bodies or BodyMemory()
        self.is_open = True
        self.max_inside = max_inside

    @property
    def num_inside(self) -> int:
        """Requests of all keys."""
        return self.inside_of.total()

    def close(self) -> None:
        """Let nothing in any more."""
        self.is_open = False


class ConcurrencyLimitMiddleware:
    """ASGI middleware that reserves a place for each request that brings work, before its body is read.

    What only asks how things are (GET) always comes in.
    """

    def __init__(self, app: ASGIApp, *, concurrency_limit: ConcurrencyLimit, metrics: Metrics) -> None:
        self._app = app
        self._limit = concurrency_limit
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        key_name = scope.get(SCOPE_KEY_NAME, NO_KEY)
        refusal = self._refusal(key_name)
        if refusal is not None:
            refusal.is_body_unread = True
            await refusal.response()(scope, receive, send)
            return
        self._limit.inside_of[key_name] += 1
        share = self._limit.bodies.enter(key_name)
        scope[SCOPE_BODY] = share
        try:
            await self._app(scope, receive, send)
        finally:
            share.release()
            if share.was_refused:
                self._metrics.count_rejection("body_memory")
            self._limit.inside_of[key_name] -= 1
            if not self._limit.inside_of[key_name]:
                del self._limit.inside_of[key_name]

    def _refusal(self, key_name: str) -> ApiError | None:
        if not self._limit.is_open:
            return unavailable("The server is shutting down. Try again shortly.")
        if not has_room(self._limit.inside_of, key_name, 1, self._limit.max_inside):
            self._metrics.count_rejection("queue_full")
            return overloaded(f"It has {self._limit.max_inside} requests already, its limit.", RETRY_SECONDS)
        return None
