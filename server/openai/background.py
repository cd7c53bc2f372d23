"""Background responses: POST /v1/responses with `background`, and the routes that read, cancel and delete them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from caravan.server.generation.request_limits import RequestLimits
from caravan.server.http.errors import as_api_error, invalid
from caravan.server.http.json_response import json_response
from caravan.server.http.openapi import answers, errors
from caravan.server.openai.protocol.response_object import DeletedResponse, ResponseObject
from caravan.server.resumption.kept_response import KeptResponse
from caravan.server.resumption.kept_responses import KeptResponses
from caravan.server.resumption.resumption import keep
from caravan.server.resumption.routes import ResponseReaders, end_response, event_number, not_found

_ENDS = ("response.completed", "response.incomplete", "response.failed")
_PARAMETERS = {
    "parameters": [
        {"name": "stream", "in": "query", "schema": {"type": "boolean"}, "description": "Send the events."},
        {
            "name": "starting_after",
            "in": "query",
            "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_998},
            "description": "`sequence_number` of the last event that the client has.",
        },
    ]
}


class BackgroundResponse(Response):
    """The answer to a request with `background`: the events, or the response as it is before it begins."""

    def __init__(
        self,
        kept: KeptResponse,
        run: Callable[[Request], Awaitable[Response]],
        limits: RequestLimits,
        queued: ResponseObject,
        *,
        is_stream: bool,
    ) -> None:
        """`run` runs the generation and returns the response with its events."""
        super().__init__()
        kept.is_body_read = True
        kept.queued_body, kept.queued_id = msgspec.json.encode(queued), queued.id
        self._kept = kept
        self._run = run
        self._limits = limits
        self._is_stream = is_stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the client, and return when the generation has ended."""
        kept = self._kept
        if self._is_stream:
            await keep(kept, self._respond, self._limits, scope, receive, send)
            return
        producing = asyncio.create_task(kept.produce(self._respond, receive))
        try:
            try:
                await Response(kept.queued_body, media_type="application/json")(scope, receive, send)
            finally:
                kept.detach()
            await producing
        finally:
            producing.cancel()
            await asyncio.gather(producing, return_exceptions=True)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._run(Request(scope, receive))
        except Exception as error:
            response = as_api_error(error).response()
        await response(scope, receive, send)


def open_background(responses: KeptResponses | None, scope: Scope) -> KeptResponse:
    """Return the place of a background response; raises ApiError."""
    if responses is None:
        raise invalid("`background` cannot be used in a batch, whose lines run in the background anyway.", "background")
    if responses.is_kept(scope):
        raise invalid("`background` cannot be combined with `x-caravan-resume`; it does the same.", "background")
    return responses.open(scope)


def background_router(readers: ResponseReaders) -> APIRouter:
    """Return the routes of background responses; each key sees its own only."""
    router = APIRouter(tags=["generation"])

    def find(request: Request, response_id: str) -> KeptResponse:
        kept = readers.find(request, response_id, "response_id")
        if not kept.queued_body:
            raise not_found("response_id")
        kept.touch()
        return kept

    @router.get(
        "/v1/responses/{response_id}",
        summary="Retrieve a background response, or read its events from an offset",
        response_class=Response,
        openapi_extra=_PARAMETERS,
        responses=errors(400, 401, 404, 410, 429, 500, 503)
        | answers(ResponseObject, is_streamed=True)
        | {204: {"description": "The response has ended, and the client has its last event."}},
    )
    async def retrieve_response(response_id: str, request: Request) -> Response:
        kept = find(request, response_id)
        stream = request.query_params.get("stream", "false")
        if stream not in ("true", "false"):
            raise invalid("`stream` must be true or false.", "stream")
        after = event_number(request, "starting_after", first=0)
        if stream == "false" and "starting_after" in request.query_params:
            raise invalid("`starting_after` requires `stream=true`.", "starting_after")
        if stream == "true":
            return await readers.read(request, kept, after)
        return _shown(kept)

    @router.post(
        "/v1/responses/{response_id}/cancel",
        summary="Cancel a background response",
        responses=answers(ResponseObject) | errors(401, 404, 429, 500, 503),
    )
    async def cancel_response(response_id: str, request: Request) -> Response:
        kept = find(request, response_id)
        kept.cancel()
        await kept.until(lambda: kept.has_ended)
        return _shown(kept)

    @router.delete(
        "/v1/responses/{response_id}",
        summary="Delete a background response, and end it if it runs",
        responses=answers(DeletedResponse) | errors(401, 404, 429, 503),
    )
    async def delete_response(response_id: str, request: Request) -> Response:
        await end_response(find(request, response_id))
        return json_response(DeletedResponse(id=response_id))

    return router


def _shown(kept: KeptResponse) -> Response:
    """Return a response as it is now; its output is there when it is complete."""
    if kept.status >= 400 and not kept.is_cancelled:
        return Response(kept.last_event, kept.status, media_type="application/json")
    event: dict[str, Any] = msgspec.json.decode(kept.last_event.partition(b"data: ")[2] or b"{}")
    if event.get("type") in _ENDS:
        return json_response(event["response"])
    body: dict[str, Any] = msgspec.json.decode(kept.queued_body)
    if kept.is_cancelled:
        body["status"] = "cancelled"
    elif kept.has_ended:
        body["status"] = "failed"
        body["error"] = {"code": "server_error", "message": "The server failed to handle this request."}
    elif kept.num_events:
        body["status"] = "in_progress"
    return json_response(body)
