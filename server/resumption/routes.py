"""/v1/requests/{name}/stream and DELETE /v1/requests/{name}: read a response again, or end it."""

import re
from collections.abc import Callable

from fastapi import APIRouter, Request, Response

from caravan.server.generation.context import key_name_of
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.http.concurrency_limit import ConcurrencyLimit
from caravan.server.http.disconnect import until_disconnect
from caravan.server.http.errors import ApiError, invalid, overloaded
from caravan.server.http.openapi import errors
from caravan.server.resumption.kept_response import KeptResponse
from caravan.server.resumption.kept_responses import KeptResponses

MAX_READERS = 8  # of one response at the same time
_RETRY_SECONDS = 5
_NUMBER = re.compile(r"[0-9]{1,9}")

_PARAMETERS = {
    "parameters": [
        {
            "name": "after",
            "in": "query",
            "description": "Number of the last event, or line of JSON, that the client has.",
            "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
        },
        {
            "name": "Last-Event-ID",
            "in": "header",
            "description": "The same, as browsers send it.",
            "schema": {"type": "string", "pattern": "^[0-9]{1,9}$"},
        },
    ]
}


class ResponseReaders:
    """Connects clients to kept responses again; a client that reads counts as a running request."""

    def __init__(
        self,
        responses: KeptResponses,
        limits: RequestLimits,
        concurrency_limit: ConcurrencyLimit,
        on_resume: Callable[[], object],
    ) -> None:
        """`on_resume` is called for each connection that reads a response again."""
        self._responses = responses
        self._limits = limits
        self._concurrency_limit = concurrency_limit
        self._on_resume = on_resume

    def find(self, request: Request, name: str, param: str = "name") -> KeptResponse:
        """Return the response of a request or response id; raises ApiError 404."""
        kept = self._responses.find(request.scope, name)
        if kept is None:
            raise not_found(param)
        return kept

    async def read(self, request: Request, kept: KeptResponse, after: int) -> Response:
        """Return the response after event `after`; waits until it begins. Raises ApiError, ClientDisconnect."""
        if kept.num_readers >= MAX_READERS:
            raise overloaded(f"The response is at its limit of {MAX_READERS} readers.", _RETRY_SECONDS)
        detach = self._attach(kept, key_name_of(request.scope))
        is_handed_over = False
        try:
            if not kept.has_head:
                waiting = kept.until(lambda: kept.has_head or kept.has_ended or kept.is_dropped)
                await until_disconnect(request.receive, waiting)
            if not kept.has_head:
                raise not_found()
            if after > kept.num_events:
                raise invalid(f"The response has {kept.num_events} events so far, fewer than {after}.", "after")
            if after < kept.num_dropped_events:
                raise ApiError(
                    410,
                    f"Event {after + 1} is no longer kept; the first one that is has number "
                    f"{kept.num_dropped_events + 1} (--resume-memory).",
                    param="after",
                    code="events_dropped",
                )
            if after and after == kept.num_events and (kept.is_complete or kept.has_ended):
                return Response(status_code=204)  # which ends the reconnections of browsers
            self._on_resume()
            if kept.record is not None and not kept.is_complete:
                kept.record.add_event("stream resumed", after_event=after)
            is_handed_over = True
            return kept.response(after, self._limits, detach)
        finally:
            if not is_handed_over:
                detach()

    def _attach(self, kept: KeptResponse, key_name: str) -> Callable[[], None]:
        """Count a reader; return what counts it no more."""
        kept.attach()
        running = self._concurrency_limit.requests_by_key
        running[key_name] += 1

        def detach() -> None:
            running[key_name] -= 1
            if not running[key_name]:
                del running[key_name]
            kept.detach()

        return detach


def not_found(param: str = "name") -> ApiError:
    """Return the error for a response that is not kept, or that another key requested."""
    return ApiError(404, "There is no such response of this API key that can be read again.", param=param)


def kept_responses_router(readers: ResponseReaders) -> APIRouter:
    """Return the routes; each key sees the responses to its own requests only."""
    router = APIRouter(tags=["generation"])

    @router.get(
        "/v1/requests/{name}/stream",
        summary="Read a resumable response again, by response id or request id",
        response_class=Response,
        openapi_extra=_PARAMETERS,
        responses=errors(400, 401, 404, 410, 429)
        | {
            200: {
                "description": "The response after the given event.",
                "content": {"text/event-stream": {}, "application/x-ndjson": {}, "application/json": {}},
            },
            204: {"description": "The response has ended, and the client has its last event."},
        },
    )
    async def read_again(name: str, request: Request) -> Response:
        return await readers.read(request, readers.find(request, name), event_number(request))

    @router.delete(
        "/v1/requests/{name}",
        summary="End a resumable response, by response id or request id",
        status_code=204,
        response_class=Response,
        responses=errors(401, 404, 429, 503) | {204: {"description": "The response has ended and is not kept."}},
    )
    async def end(name: str, request: Request) -> Response:
        await end_response(readers.find(request, name))
        return Response(status_code=204)

    return router


async def end_response(kept: KeptResponse) -> None:
    """End a response and drop it when it has ended; a request whose body is not there yet ends when it is."""
    kept.cancel()
    await kept.until(lambda: kept.has_ended or not kept.is_body_read)
    kept.drop()


def event_number(request: Request, name: str = "after", first: int = 1) -> int:
    """Return the number of the last event that the client has, 0 if none; raises ApiError.

    `name` is the query parameter with the number, in which the first event has the number `first`.
    """
    sent = request.query_params.getlist(name)
    headers = [value for value in request.headers.getlist("last-event-id") if value]
    if not all(map(_NUMBER.fullmatch, [*sent, *headers])):
        raise invalid(f"`{name}` or `Last-Event-ID` must be a number from 0 to 999999999.", name)
    numbers = {*(int(value) + 1 - first for value in sent), *map(int, headers)}
    if len(numbers) > 1:
        raise invalid(f"`{name}` or `Last-Event-ID` is given twice, with different values.", name)
    return numbers.pop() if numbers else 0
