"""ApiKeyAuth: the API key that a request must bring."""

from starlette.types import ASGIApp, Receive, Scope, Send

from caravan.server.generation.context import SCOPE_KEY_NAME, SCOPE_MIN_PRIORITY
from caravan.server.http.api_keys import ApiKey, ApiKeys
from caravan.server.http.errors import ApiError

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})
PAGE_PATHS = frozenset({"/", "/docs"})
SCRAPED_PATH = "/metrics"

_KEY_HEADERS = (b"x-api-key", b"api-key")


class ApiKeyAuth:
    """ASGI middleware that lets no request through without a key, except those for health and for the pages.

    The path it decides on is the one that routing uses, not one a client can write into a header.
    """

    def __init__(self, app: ASGIApp, *, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "lifespan" or is_open(path):
            await self._app(scope, receive, send)
            return
        try:
            key = self._key_for(path, _keys_of(scope))
            scope[SCOPE_KEY_NAME], scope[SCOPE_MIN_PRIORITY] = key.name, key.min_priority
        except ApiError as error:
            if scope["type"] != "http":
                await send({"type": "websocket.close", "code": 1008})
                return
            response = error.response()
            if error.status == 401:
                response.headers["www-authenticate"] = "Bearer"
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _key_for(self, path: str, sent: list[bytes]) -> ApiKey:
        """Return the record of the one key that was sent; raises ApiError if it does not open the path."""
        if len(sent) > 1:
            raise _unauthorized("The request has several different API keys; send one.")
        key = self._keys.find(sent[0]) if sent else None
        if key is None:
            raise _unauthorized(
                "The API key is missing or wrong. Send it as `Authorization: Bearer KEY` or `x-api-key: KEY`."
            )
        if path == SCRAPED_PATH and not self._keys.can_scrape(key):
            raise ApiError(403, "This API key may not read the metrics; one marked `scrape` in the key file may.")
        return key


def is_open(path: str) -> bool:
    """Return whether a path is answered without a key: health, and the files of the pages, which are no secret."""
    return path in OPEN_PATHS or path in PAGE_PATHS or path.startswith("/web/")


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key")


def _keys_of(scope: Scope) -> list[bytes]:
    """Return the different keys that a request has in its headers."""
    keys: set[bytes] = set()
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() != b"bearer":  # as of a proxy in front, with a password of its own
                continue
            keys.add(bytes(key.strip()))
        elif name in _KEY_HEADERS:
            keys.add(bytes(value.strip()))
    return [*keys - {b""}]
