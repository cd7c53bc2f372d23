"""GET /metrics: the Prometheus endpoint."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import choose_encoder

from caravan.server.http.openapi import errors
from caravan.server.observe.all_metrics import AllMetrics


def metrics_router(metrics: AllMetrics) -> APIRouter:
    """Return the route that Prometheus scrapes."""
    router = APIRouter(tags=["operations"])

    @router.get(
        "/metrics",
        response_class=PlainTextResponse,
        summary="Metrics in the Prometheus text format, or OpenMetrics if requested",
        responses=errors(401, 403),
    )
    async def scrape(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), media_type=content_type)

    return router
