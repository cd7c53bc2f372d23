"""KeyGuard: the door in front of all routes."""

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api_keys import ApiKeys
from server.asker import SCOPE_NAME
from server.openai.errors import ApiError

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})


class KeyGuard:
    """ASGI middleware that lets nobody through without a key, but to ask for health and for the page.

    The path it decides on is the one that routing uses, not one a client can write into a header.
    """

    def __init__(self, app: ASGIApp, *, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_open(scope.get("path", "")):
            await self._app(scope, receive, send)
            return
        name = self._keys.name_of(_bearer(scope))
        if name is not None:
            scope[SCOPE_NAME] = name
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            response = ApiError(
                401, "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`.", code="invalid_api_key"
            ).response()
            response.headers["www-authenticate"] = "Bearer"
            await response(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})


def is_open(path: str) -> bool:
    """Return whether a path is answered without a key: health, and the files of the page, which are no secret."""
    return path in OPEN_PATHS or path == "/" or path.startswith("/web/")


def _bearer(scope: Scope) -> bytes:
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        return b""
    kind, _, key = values[0].partition(b" ")
    return bytes(key.strip()) if kind.lower() == b"bearer" else b""
