"""POST /v1/learn/simulate: the engine's scheduler without a model."""

from functools import partial

from fastapi import APIRouter, Request, Response

from caravan.server.generation.context import key_name_of
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.errors import ApiError
from caravan.server.http.json_response import json_response
from caravan.server.http.openapi import documented, errors
from caravan.server.learn.simulation_protocol import SimulateRequest, Simulation
from caravan.server.openai.protocol.strict_model import ignored_fields
from caravan.server.openai.protocol.validated_body import read_body

_EXAMPLE = {"requests": [{"prompt": [1, 2, 3], "max_tokens": 4}, {"prompt": [1, 2, 4], "max_tokens": 2, "step": 1}]}


def simulate_router(models: ServedModels, *, is_on: bool) -> APIRouter:
    """Return the route; it is an error unless `is_on`."""
    router = APIRouter(tags=["learn"])
    documentation = documented(SimulateRequest, _EXAMPLE, answer=Simulation)
    documentation["responses"] |= errors(403)

    @router.post("/v1/learn/simulate", summary="Run the scheduler without a model", **documentation)
    async def simulation(request: Request) -> Response:
        if not is_on:
            raise ApiError(403, "Simulations are off on this server. Start it with --learn on.", code="learn_off")
        body = await read_body(request, SimulateRequest, models.limits)
        models.first.metrics.count_ignored_fields(ignored_fields(body))
        executor = models.first.executors.tokenizing
        return json_response(await executor.run(key_name_of(request.scope), partial(_simulate, body)))

    return router


def _simulate(body: SimulateRequest) -> Simulation:
    # Imported with the first lesson: the scheduler brings numpy, which nothing else in this process needs.
    from caravan.server.learn.simulation import simulate

    return simulate(body)
