"""ApiKeyAuth: authenticate requests by API key."""

from starlette.types import ASGIApp, Receive, Scope, Send

from caravan.server.generation.context import SCOPE_KEY_DIGEST, SCOPE_KEY_NAME, SCOPE_MIN_PRIORITY
from caravan.server.http.api_keys import ApiKey, ApiKeys
from caravan.server.http.errors import ApiError

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})
PAGE_PATHS = frozenset({"/", "/docs"})
SCRAPED_PATH = "/metrics"
ADAPTER_PATHS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})

_KEY_HEADERS = (b"x-api-key", b"api-key")


class ApiKeyAuth:
    """ASGI middleware that requires a key, except for health checks and the pages.

    It uses the same path as routing, which a client cannot override with a header.
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
            scope[SCOPE_KEY_DIGEST] = key.digest.hex()
            scope[SCOPE_KEY_NAME], scope[SCOPE_MIN_PRIORITY] = key.name, key.min_priority
        except ApiError as error:
            if scope["type"] != "http":
                await send({"type": "websocket.close", "code": 1008})
                return
            response = error.response(scope)
            if error.status == 401:
                response.headers["www-authenticate"] = "Bearer"
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _key_for(self, path: str, sent: list[bytes]) -> ApiKey:
        """Return the record of the one key that was sent; raises ApiError if it does not allow the path."""
        if len(sent) > 1:
            raise _unauthorized("The request has several different API keys; send one.")
        key = self._keys.find(sent[0]) if sent else None
        if key is None:
            raise _unauthorized(
                "The API key is missing or invalid. Send it as `Authorization: Bearer KEY` or `x-api-key: KEY`."
            )
        if path == SCRAPED_PATH and not self._keys.can_scrape(key):
            raise ApiError(403, "This API key may not read /metrics; use one with `scrape` in the key file.")
        if path in ADAPTER_PATHS and not key.may_load:
            raise ApiError(403, "This API key may not change adapters; use one with `adapters` in the key file.")
        return key


def is_open(path: str) -> bool:
    """Return whether a path is public: health checks and the files of the pages."""
    return path in OPEN_PATHS or path in PAGE_PATHS or path.startswith("/web/")


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key")


def _keys_of(scope: Scope) -> list[bytes]:
    """Return the distinct keys in the headers of a request."""
    keys: set[bytes] = set()
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() != b"bearer":  # for example, credentials for a proxy
                continue
            keys.add(bytes(key.strip()))
        elif name in _KEY_HEADERS:
            keys.add(bytes(value.strip()))
    return [*keys - {b""}]
