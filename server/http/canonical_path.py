"""CanonicalPath: the spellings of a path that clients use, brought to the one that routes have."""

import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

_VERSION = "/v1"
_SLASHES = re.compile("/{2,}")


class CanonicalPath:
    """ASGI middleware that rewrites a path before anything decides on it.

    Doubled slashes become one, a slash at the end is left out (and a line feed there, with which a path still matches
    its route, but no other comparison), and the path of a route under /v1 may come without it or
    with it twice, as from clients whose base URL is another one than they expect.
    """

    def __init__(self, app: ASGIApp, *, routes: Iterable[str]) -> None:
        """`routes` are the paths of the application's routes."""
        self._app = app
        versioned, others = set(), set()
        for route in routes:
            first, *rest = route.strip("/").split("/")
            if first == _VERSION.strip("/") and rest:
                versioned.add(rest[0])
            else:
                others.add(first)
        self._versioned = frozenset(versioned - others)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "path" in scope:  # as in all but the lifespan
            scope["path"] = self.rewritten(scope["path"])
        await self._app(scope, receive, send)

    def rewritten(self, path: str) -> str:
        """Return the path as routes have it."""
        path = _SLASHES.sub("/", path)
        if path != "/":
            path = path.rstrip("/\n") or "/"
        while path.startswith(f"{_VERSION}{_VERSION}/"):
            path = path.removeprefix(_VERSION)
        first = path.removeprefix("/").partition("/")[0]
        return _VERSION + path if path.startswith("/") and first in self._versioned else path
