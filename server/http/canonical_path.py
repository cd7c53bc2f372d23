"""CanonicalPath: normalize request paths to those of the routes."""

import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

_VERSION = "/v1"
_SLASHES = re.compile("/{2,}")


class CanonicalPath:
    """ASGI middleware that rewrites the path before authentication and routing.

    Double slashes become one. A trailing slash is removed, and so is a trailing line feed, which routing would ignore
    but comparisons would not. A missing or doubled /v1 is corrected, for clients with another base URL. The prefix of
    --root-path is removed, unless a proxy has done that.
    """

    def __init__(self, app: ASGIApp, *, routes: Iterable[str], root_path: str = "") -> None:
        """`routes` are the paths of the application's routes."""
        self._app = app
        self._root_path = root_path
        versioned, others = set(), set()
        for route in routes:
            first, *rest = route.strip("/").split("/")
            if first == _VERSION.strip("/") and rest:
                versioned.add(rest[0])
            else:
                others.add(first)
        self._versioned = frozenset(versioned - others)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "path" in scope:  # all scopes but lifespan have it
            scope["path"] = self.rewritten(scope["path"])
        await self._app(scope, receive, send)

    def rewritten(self, path: str) -> str:
        """Return the normalized path."""
        path = _SLASHES.sub("/", path)
        if path != "/":
            path = path.rstrip("/\n") or "/"
        if self._root_path and f"{path}/".startswith(f"{self._root_path}/"):
            path = path.removeprefix(self._root_path) or "/"
        while path.startswith(f"{_VERSION}{_VERSION}/"):
            path = path.removeprefix(_VERSION)
        first = path.removeprefix("/").partition("/")[0]
        return _VERSION + path if path.startswith("/") and first in self._versioned else path
