"""GET /v1/engine/events: views of the engine as a stream."""

from collections.abc import AsyncGenerator, Mapping

from fastapi import APIRouter, Response

from caravan.server.http.errors import ApiError, overloaded
from caravan.server.http.openapi import errors
from caravan.server.http.sse import EventStream
from caravan.server.operations.live_view import MAX_SUBSCRIBERS, LiveView, Subscriber


def live_view_router(live_views: Mapping[str, LiveView], write_timeout_seconds: float) -> APIRouter:
    """Return the route that streams snapshots; `live_views` has one for each name of a model, the default one first."""
    router = APIRouter(tags=["operations"])

    @router.get(
        "/v1/engine/events",
        summary="Stream snapshots of batch, queue and pool, four times a second",
        responses=errors(401, 404, 429)
        | {200: {"content": {"text/event-stream": {}}, "description": "Snapshots as server-sent events."}},
        response_class=Response,
    )
    async def events(model: str | None = None) -> Response:
        live_view = live_views.get(next(iter(live_views)) if model is None else model)
        if live_view is None:
            raise ApiError(404, "There is no such model.", param="model", code="model_not_found")
        if live_view.is_full:
            raise overloaded(f"The live view is at its limit of {MAX_SUBSCRIBERS} subscribers.", 5)
        subscriber = live_view.subscribe()
        return EventStream(
            _events(subscriber),
            write_timeout_seconds=write_timeout_seconds,
            on_end=lambda: live_view.unsubscribe(subscriber),
        )

    return router


async def _events(subscriber: Subscriber) -> AsyncGenerator[bytes, None]:
    yield b": hello\n\n"  # a client sees at once that it is connected
    while (body := await subscriber.take()) is not None:
        yield body
