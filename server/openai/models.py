"""GET /v1/models: the names of the served model."""

from fastapi import APIRouter, Response

from caravan.server.generation.served_model import ServedModel
from caravan.server.http.errors import ApiError, shown
from caravan.server.http.json_response import json_response
from caravan.server.http.openapi import answers, errors
from caravan.server.openai.protocol.models import ModelEntry, ModelList


def check_model(served: ServedModel, name: str) -> None:
    """Raise ApiError 404 unless `name` is one of the served model's names."""
    if name not in served.names:
        raise ApiError(404, f"The model `{shown(name)[1:-1]}` does not exist.", param="model", code="model_not_found")


def models_router(served: ServedModel) -> APIRouter:
    """Return the router of GET /v1/models."""
    router = APIRouter(tags=["models"])

    def entry(name: str) -> ModelEntry:
        return ModelEntry(id=name, created=served.created_at, root=served.name, max_model_len=served.max_model_len)

    @router.get("/v1/models", summary="List models", responses=answers(ModelList) | errors(401))
    async def list_models() -> Response:
        return json_response(ModelList(data=[entry(name) for name in served.names]))

    # A name may contain slashes, as on the Hugging Face hub.
    @router.get("/v1/models/{name:path}", summary="Retrieve a model", responses=answers(ModelEntry) | errors(401, 404))
    async def retrieve_model(name: str) -> Response:
        check_model(served, name)
        return json_response(entry(name))

    return router
