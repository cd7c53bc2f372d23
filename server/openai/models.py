"""GET /v1/models: the names and states of the served models."""

from fastapi import APIRouter, Request, Response
from starlette.types import Scope

from caravan.server.generation.context import SCOPE_METRICS
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.errors import ApiError, shown
from caravan.server.http.json_response import json_response
from caravan.server.http.openapi import answers, errors
from caravan.server.openai.protocol.models import ModelEntry, ModelList


def chosen_model(models: ServedModels, name: str | None, scope: Scope) -> ServedModel:
    """Return the model that a request names, the first one for None; raises ApiError 404 if there is no such model."""
    served = models.first if name is None else models.find(name)
    if served is None:
        assert name is not None
        raise ApiError(404, f"The model `{shown(name)[1:-1]}` does not exist.", param="model", code="model_not_found")
    scope[SCOPE_METRICS] = served.metrics
    return served


def models_router(models: ServedModels) -> APIRouter:
    """Return the router of GET /v1/models."""
    router = APIRouter(tags=["models"])

    def entry(served: ServedModel, name: str) -> ModelEntry:
        return ModelEntry(
            id=name,
            created=served.created_at,
            root=served.parent or served.name,
            parent=served.parent or None,
            max_model_len=served.max_model_len,
            state=served.engine.state,
        )

    @router.get("/v1/models", summary="List models", responses=answers(ModelList) | errors(401))
    async def list_models() -> Response:
        return json_response(ModelList(data=[entry(served, name) for name, served in models.named.items()]))

    # A name may contain slashes, as on the Hugging Face hub.
    @router.get("/v1/models/{name:path}", summary="Retrieve a model", responses=answers(ModelEntry) | errors(401, 404))
    async def retrieve_model(name: str, request: Request) -> Response:
        return json_response(entry(chosen_model(models, name, request.scope), name))

    return router
