"""Resumption: responses that go on when their clients are disconnected."""

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from caravan.server.generation.context import RESUME_HEADER
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.http.disconnect import until_disconnect
from caravan.server.http.errors import ApiError, invalid
from caravan.server.resumption.kept_response import KeptResponse
from caravan.server.resumption.kept_responses import KeptResponses


class Resumption:
    """ASGI application around another one, for requests with `x-caravan-resume`."""

    def __init__(self, app: ASGIApp, responses: KeptResponses, limits: RequestLimits) -> None:
        self._app = app
        self._responses = responses
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            is_wanted = _is_wanted(scope)
            kept = self._responses.open(scope) if is_wanted else None
        except ApiError as error:
            error.is_body_unread = True
            await error.response(scope)(scope, receive, send)
            return
        if kept is None:
            await self._app(scope, receive, send)
        else:
            await keep(kept, self._app, self._limits, scope, receive, send)


async def keep(
    kept: KeptResponse, app: ASGIApp, limits: RequestLimits, scope: Scope, receive: Receive, send: Send
) -> None:
    """Run an application and send its response; when the client disconnects, the application goes on.

    Returns when the application has, or raises its exception. Until then the request counts as a running one.
    """
    producing = asyncio.create_task(kept.produce(app, receive))
    try:
        is_sent = await _send_first(kept, limits, scope, receive, send)
        await producing
        if not is_sent:  # nobody reads this; the log and the metrics have the status
            await send({"type": "http.response.start", "status": kept.status, "headers": []})
    finally:
        producing.cancel()
        await asyncio.gather(producing, return_exceptions=True)
        if not kept.has_head and not kept.is_cancelled:
            kept.drop()


async def _send_first(kept: KeptResponse, limits: RequestLimits, scope: Scope, receive: Receive, send: Send) -> bool:
    """Send the response to the client of the request; return False if the client disconnected before there was one.

    An error that the client got is not kept.
    """
    is_handed_over = False
    try:
        await kept.until(lambda: kept.is_body_read or kept.has_head or kept.has_ended)
        if not kept.has_head:
            await until_disconnect(receive, kept.until(lambda: kept.has_head or kept.has_ended))
        response = kept.response(0, limits, kept.detach) if kept.has_head else None
        is_handed_over = response is not None
    except ClientDisconnect:
        return False
    finally:
        if not is_handed_over:
            kept.detach()
    if response is None:  # the application failed
        return True
    await response(scope, receive, send)
    if kept.status >= 400 and not kept.is_cancelled:
        kept.drop()
    return True


def _is_wanted(scope: Scope) -> bool:
    """Return whether the client wants to resume the response to a POST; raises ApiError."""
    values = {value for name, value in scope["headers"] if name == RESUME_HEADER}
    if values - {b"0", b"1"} or len(values) > 1:
        raise invalid("`x-caravan-resume` must be 1 or 0.", RESUME_HEADER.decode())
    return values == {b"1"} and scope["method"] == "POST"
