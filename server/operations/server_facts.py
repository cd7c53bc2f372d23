"""GET /v1/server: what this server serves, with which limits and options, and what the caller's key has used."""

import time
from collections.abc import Callable, Sequence

import msgspec
from fastapi import APIRouter, Request, Response

from caravan.server.engine.client import EngineState
from caravan.server.generation.context import NO_KEY, key_name_of
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.json_response import json_response
from caravan.server.http.openapi import answers, errors

USAGE = ("key_requests", "key_prompt_tokens", "key_generation_tokens")  # counters of Metrics


class OptionFacts(msgspec.Struct, kw_only=True, frozen=True):
    """An option in force. Values that name files or addresses of the machine are replaced by `set`."""

    name: str
    group: str
    value: str
    is_set: bool  # by a flag, a variable or the file; otherwise it is the default


class ModelFacts(msgspec.Struct, kw_only=True):
    """A served model. Sizes are 0 until its engine has reported them."""

    names: list[str]
    state: EngineState
    weights: str  # how they are stored and multiplied
    num_parameters: int
    weight_bytes: int
    kv_cache_bytes: int
    kv_cache_dtype: str
    num_blocks: int
    block_size: int
    max_model_len: int
    max_num_seqs: int
    max_batch_tokens: int
    max_queued_requests: int
    max_queued_tokens: int
    max_wait_seconds: float | None  # None: no limit
    draft_model: str
    adapter: str  # merged into the weights
    fingerprint: str
    num_running: int
    num_waiting: int


class KeyUsage(msgspec.Struct, kw_only=True):
    """What the caller's key has used since the start of the server."""

    name: str
    num_requests: int
    num_prompt_tokens: int
    num_generation_tokens: int


class RequestFacts(msgspec.Struct, kw_only=True):
    """The limits of one HTTP request."""

    max_body_bytes: int
    max_choices: int
    body_timeout_seconds: float
    write_timeout_seconds: float


class ServerFacts(msgspec.Struct, kw_only=True):
    """The response of GET /v1/server."""

    version: str
    is_ready: bool
    uptime_seconds: float
    models: list[ModelFacts]
    limits: RequestFacts
    key: KeyUsage | None  # None: the server has no keys
    options: list[OptionFacts]


def server_facts_router(
    models: ServedModels,
    version: str,
    is_ready: Callable[[], bool],
    options: Sequence[OptionFacts],
) -> APIRouter:
    """Return the route; `options` are those in force, without secrets."""
    router = APIRouter(tags=["operations"])
    started_at_seconds = time.monotonic()

    @router.get(
        "/v1/server",
        summary="State, models, limits and options of the server, and the usage of the caller's API key",
        responses=answers(ServerFacts) | errors(401),
    )
    async def facts(request: Request) -> Response:
        return json_response(
            ServerFacts(
                version=version,
                is_ready=is_ready(),
                uptime_seconds=round(time.monotonic() - started_at_seconds, 1),
                models=[_model_facts(served) for served in models],
                limits=_request_facts(models.limits),
                key=_usage(models, key_name_of(request.scope)),
                options=[*options],
            )
        )

    return router


def _model_facts(served: ServedModel) -> ModelFacts:
    report, config, limits = served.engine.report, served.admission.config, served.admission.limits
    stats = served.metrics.stats
    return ModelFacts(
        names=[*served.names],
        state=served.engine.state,
        weights=report.weights if report else "",
        num_parameters=report.num_parameters if report else 0,
        weight_bytes=report.weight_bytes if report else 0,
        kv_cache_bytes=report.kv_cache_bytes if report else 0,
        kv_cache_dtype=report.kv_cache_dtype if report else "",
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        max_model_len=served.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_batch_tokens=config.max_batch_tokens,
        max_queued_requests=limits.max_requests,
        max_queued_tokens=limits.max_tokens,
        max_wait_seconds=limits.max_wait_seconds,
        draft_model=report.draft_model if report else "",
        adapter=report.adapter if report else "",
        fingerprint=served.engine.fingerprint,
        num_running=stats.num_running,
        num_waiting=stats.num_waiting,
    )


def _request_facts(limits: RequestLimits) -> RequestFacts:
    return RequestFacts(
        max_body_bytes=limits.max_body_bytes,
        max_choices=limits.max_choices,
        body_timeout_seconds=limits.body_timeout_seconds,
        write_timeout_seconds=limits.write_timeout_seconds,
    )


def _usage(models: ServedModels, key_name: str) -> KeyUsage | None:
    """Return the usage of a key over all models, None if the server has no keys."""
    if key_name == NO_KEY:
        return None
    requests, prompt, generation = (sum(_total(served, counter, key_name) for served in models) for counter in USAGE)
    return KeyUsage(name=key_name, num_requests=requests, num_prompt_tokens=prompt, num_generation_tokens=generation)


def _total(served: ServedModel, counter: str, key_name: str) -> int:
    labels = {"model_name": served.name, "key": key_name}
    return int(served.metrics.registry.get_sample_value(f"caravan_{counter}_total", labels) or 0)
