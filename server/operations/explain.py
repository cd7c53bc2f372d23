"""GET /v1/requests/{name}/explain: the recorded events of a request."""

from fastapi import APIRouter, Request, Response

from caravan.server.generation.context import NO_KEY, SCOPE_KEY_NAME
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.errors import ApiError
from caravan.server.http.json_response import json_response
from caravan.server.http.openapi import answers, errors
from caravan.server.observe.explanation import Explanation


def explanations_router(models: ServedModels) -> APIRouter:
    """Return the route; each key sees its own requests only."""
    router = APIRouter(tags=["operations"])

    @router.get(
        "/v1/requests/{name}/explain",
        summary="Explain a request, by response id or request id",
        responses=answers(Explanation) | errors(401, 404),
    )
    async def explain(name: str, request: Request) -> Response:
        key_name = request.scope.get(SCOPE_KEY_NAME, NO_KEY)
        record = next(filter(None, (served.history.find(name, key_name) for served in models)), None)
        if record is None:
            raise ApiError(404, "There is no such request among the latest ones of this API key.", param="name")
        return json_response(record.explanation())

    return router
