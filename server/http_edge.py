"""HttpEdge: what every HTTP exchange gets, whichever route answers it."""

import re
import time
import uuid
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.asker import SCOPE_NAME, SCOPE_REQUEST_ID, SCOPE_USAGE
from server.logs import bind_request_id
from server.metrics import Metrics
from server.openai.errors import as_api_error

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLIENT_ID = re.compile(rb"[\w-]{1,64}")

WriteLog = Callable[[dict[str, object]], object]


class HttpEdge:
    """ASGI middleware: an `x-request-id` on each answer, a count in the metrics, and a 500 for what nobody caught.

    It passes messages through as they are. (starlette's BaseHTTPMiddleware would put a queue between a stream and its
    client, and hide from the route that the client has gone.)
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, write_log: WriteLog = lambda _: None) -> None:
        """`write_log` is given the fields of each exchange when it has ended."""
        self._app = app
        self._metrics = metrics
        self._write_log = write_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope[SCOPE_REQUEST_ID] = request_id.decode()
        bind_request_id(request_id.decode())
        started = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if status:  # too late for an answer: the server cuts the connection
                raise
            await as_api_error(error).response()(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.count_http(route, status or 499)
            self._write_log(log_fields(scope, route, status or 499) | {"seconds": round(time.monotonic() - started, 3)})


def log_fields(scope: Scope, route: str, status: int) -> dict[str, object]:
    """Return what is logged of an exchange: nothing that a client can choose, beside its harmless id."""
    num_prompt_tokens, num_completion_tokens = scope.get(SCOPE_USAGE, (0, 0))
    return {
        "client": (scope.get("client") or ("-",))[0],
        "method": scope["method"] if scope["method"] in _METHODS else "-",
        "route": route,
        "status": status,
        "key": scope.get(SCOPE_NAME) or "-",
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
    }


def _request_id(scope: Scope) -> bytes:
    """Return the client's own id if it is harmless in a log and a header, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _CLIENT_ID.fullmatch(value):
            return bytes(value)
    return uuid.uuid4().hex.encode()
