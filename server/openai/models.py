"""GET /v1/models: the names of the served model."""

from typing import Any

from fastapi import APIRouter

from caravan.server.generation.served_model import ServedModel
from caravan.server.http.errors import ApiError, shown
from caravan.server.http.openapi import errors
from caravan.server.openai.protocol.answers import ModelEntry, ModelList


def check_model(served: ServedModel, name: str) -> None:
    """Raise ApiError 404 unless `name` is one of the served model's names."""
    if name not in served.names:
        raise ApiError(404, f"The model `{shown(name)[1:-1]}` does not exist.", param="model", code="model_not_found")


def models_router(served: ServedModel) -> APIRouter:
    """Return the routes that list what is served."""
    router = APIRouter(tags=["models"])

    def entry(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": served.created_at,
            "owned_by": "caravan",
            "root": served.name,
            "max_model_len": served.max_model_len,
        }

    @router.get("/v1/models", summary="List the models", responses=errors(401), response_model=ModelList)
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [entry(name) for name in served.names]}

    # A name may contain slashes, as on the Hugging Face hub.
    @router.get(
        "/v1/models/{name:path}", summary="Describe a model", responses=errors(401, 404), response_model=ModelEntry
    )
    async def retrieve_model(name: str) -> dict[str, Any]:
        check_model(served, name)
        return entry(name)

    return router
