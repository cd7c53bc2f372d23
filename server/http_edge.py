"""HttpEdge: what every HTTP exchange gets, whichever route answers it."""

import logging
import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.metrics import Metrics
from server.openai.errors import as_api_error

_CLIENT_ID = re.compile(rb"[\w-]{1,64}")

logger = logging.getLogger(__name__)


class HttpEdge:
    """ASGI middleware: an `x-request-id` on each answer, a count in the metrics, and a 500 for what nobody caught.

    It passes messages through as they are. (starlette's BaseHTTPMiddleware would put a queue between a stream and its
    client, and hide from the route that the client has gone.)
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
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


def _request_id(scope: Scope) -> bytes:
    """Return the client's own id if it is harmless in a log and a header, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _CLIENT_ID.fullmatch(value):
            return bytes(value)
    return uuid.uuid4().hex.encode()
