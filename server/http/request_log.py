"""RequestLogging: request ids, request metrics and the records of HTTP requests."""

import re
import time
import uuid
from collections.abc import Callable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caravan.server.generation.context import NO_KEY, SCOPE_KEY_NAME, SCOPE_METRICS, SCOPE_RECORD, SCOPE_REQUEST_ID
from caravan.server.http.client_address import Network, client_address
from caravan.server.http.error_form import SCOPE_FORM, ErrorForm
from caravan.server.http.errors import as_api_error
from caravan.server.observe.http_record import HttpRecord
from caravan.server.observe.logs import bind_request_id
from caravan.server.observe.metrics import Metrics

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLIENT_ID = re.compile(rb"[\w-]{1,64}")

OnResponse = Callable[[HttpRecord], object]


class RequestLogging:
    """ASGI middleware that adds `x-request-id`, counts each request, and sends a 500 for unhandled exceptions.

    It does not buffer. (starlette's BaseHTTPMiddleware puts a queue between a stream and its client, and hides
    disconnects from the route.)
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        forms: Sequence[ErrorForm] = (),
        on_response: OnResponse = lambda _: None,
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        """`metrics` are for requests without a model, `forms` are those of other APIs; `on_response` gets records."""
        self._app = app
        self._forms = forms
        self._trusted_proxies = trusted_proxies
        self._metrics = metrics
        self._on_response = on_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope[SCOPE_REQUEST_ID] = request_id.decode()
        bind_request_id(request_id.decode())
        id_headers = [(b"x-request-id", request_id)]
        form = next((form for form in self._forms if form.is_of(scope)), None)
        if form is not None:
            scope[SCOPE_FORM] = form
            id_headers += [(form.id_header, request_id)] if form.id_header else []
        started = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *id_headers]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if status:  # the response has started: the connection is closed
                raise
            await as_api_error(error).response(scope)(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            scope.get(SCOPE_METRICS, self._metrics).count_http(route, status or 499)
            client = client_address(scope, self._trusted_proxies)
            self._on_response(_record(scope, client, route, status or 499, time.monotonic() - started))


def _record(scope: Scope, client: str, route: str, status: int, seconds: float) -> HttpRecord:
    parents = [value for name, value in scope["headers"] if name == b"traceparent"]
    return HttpRecord(
        request_id=scope[SCOPE_REQUEST_ID],
        client=client,
        key_name=scope.get(SCOPE_KEY_NAME, NO_KEY),
        method=scope["method"] if scope["method"] in _METHODS else "-",
        route=route,
        status=status,
        seconds=seconds,
        trace_parent=parents[0].decode("latin-1") if len(parents) == 1 else "",
        generation=scope.get(SCOPE_RECORD),
    )


def _request_id(scope: Scope) -> bytes:
    """Return the client's request id if it is valid, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _CLIENT_ID.fullmatch(value):
            return bytes(value)
    return uuid.uuid4().hex.encode()
