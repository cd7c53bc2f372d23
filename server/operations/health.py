"""Whether the server lives, whether it can work, and which version it is."""

from collections.abc import Callable

from fastapi import APIRouter

from caravan.server.engine.output_queue import EngineUnavailable
from caravan.server.generation.served_model import ServedModel
from caravan.server.http.openapi import errors


def health_router(served: ServedModel, is_ready: Callable[[], bool]) -> APIRouter:
    """Return the routes for probes; they read what is known and give the engine no work."""
    router = APIRouter(tags=["operations"])
    not_ready = errors(503)

    @router.head("/livez", include_in_schema=False)
    @router.get("/livez", summary="The process answers")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @router.head("/readyz", include_in_schema=False)
    @router.head("/health", include_in_schema=False)
    @router.get("/readyz", summary="Requests are taken", responses=not_ready)
    @router.get("/health", summary="The same as /readyz", responses=not_ready)
    async def ready() -> dict[str, str]:
        if not is_ready():
            raise EngineUnavailable
        return {"status": "ready"}

    @router.head("/version", include_in_schema=False)
    @router.get("/version", summary="The server's version", responses=errors(401))
    async def version() -> dict[str, str]:
        return {"version": served.version}

    return router
