"""Health checks and the version."""

from collections.abc import Callable

from fastapi import APIRouter

from caravan.server.engine.output_queue import EngineUnavailable
from caravan.server.http.openapi import errors


def health_router(server_version: str, is_ready: Callable[[], bool]) -> APIRouter:
    """Return the routes for probes; they do not use the engine."""
    router = APIRouter(tags=["operations"])
    not_ready = errors(503)

    @router.head("/livez", include_in_schema=False)
    @router.get("/livez", summary="Liveness")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @router.head("/readyz", include_in_schema=False)
    @router.head("/health", include_in_schema=False)
    @router.get("/readyz", summary="Readiness", responses=not_ready)
    @router.get("/health", summary="Readiness, an alias of /readyz", responses=not_ready)
    async def ready() -> dict[str, str]:
        if not is_ready():
            raise EngineUnavailable
        return {"status": "ready"}

    @router.head("/version", include_in_schema=False)
    @router.get("/version", summary="Server version", responses=errors(401))
    async def version() -> dict[str, str]:
        return {"version": server_version}

    return router
