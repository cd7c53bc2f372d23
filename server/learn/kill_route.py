"""POST /v1/learn/kill_engine: kill the engine process on purpose, to see that streams continue."""

import math
import os
import signal
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Protocol, runtime_checkable

from fastapi import APIRouter, Request, Response
from starlette.types import Scope

from caravan.server.generation.served_model import Engine
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.errors import ApiError, unavailable
from caravan.server.http.json_response import json_response
from caravan.server.http.openapi import documented, errors
from caravan.server.learn.kill_protocol import CONFIRMATION, KilledEngine, KillRequest
from caravan.server.openai.models import chosen_model
from caravan.server.openai.protocol.strict_model import ignored_fields
from caravan.server.openai.protocol.validated_body import read_body

PAUSE_SECONDS = 10.0  # between two kills: a request fails after several crashes without a token between them
_OF_PROXIES = {b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip"}


@runtime_checkable
class _OwnProcess(Protocol):
    """An engine that is one process on this machine."""

    @property
    def engine_pid(self) -> int:
        """The process id, while it is loaded."""


def kill_router(models: ServedModels, *, is_on: bool, clock: Callable[[], float] = time.monotonic) -> APIRouter:
    """Return the route; it is an error unless `is_on`, and for clients on other machines."""
    router = APIRouter(tags=["learn"])
    documentation = documented(KillRequest, {"confirm": CONFIRMATION}, answer=KilledEngine)
    documentation["responses"] |= errors(403)
    killed_at_seconds: dict[str, float] = {}  # by the name of the model

    @router.post("/v1/learn/kill_engine", summary="Kill the engine process, which is then restarted", **documentation)
    async def kill_engine(request: Request) -> Response:
        if not is_on:
            raise ApiError(
                403,
                "The engine cannot be killed on this server: it has API keys, listens to other machines or has "
                "--learn off.",
                code="learn_off",
            )
        if not is_on_this_machine(request.scope):
            raise ApiError(403, "Only clients on the server's machine can kill the engine.", code="not_local")
        body = await read_body(request, KillRequest, models.limits)
        served = chosen_model(models, body.model, request.scope)
        served.metrics.count_ignored_fields(ignored_fields(body))
        name = served.parent or served.name
        left_seconds = killed_at_seconds.get(name, -PAUSE_SECONDS) + PAUSE_SECONDS - clock()
        if left_seconds > 0:
            raise ApiError(
                429,
                f"The engine was killed less than {PAUSE_SECONDS:g} s ago. Wait until its requests have continued.",
                kind="rate_limit_error",
                retry_after=math.ceil(left_seconds),
            )
        pid = _pid_of(served.engine)
        os.kill(pid, signal.SIGKILL)
        killed_at_seconds[name] = clock()
        return json_response(KilledEngine(model=name, pid=pid))

    return router


def is_on_this_machine(scope: Scope) -> bool:
    """Return whether the peer of the connection has a loopback address and no proxy has passed the request on."""
    peer = scope.get("client")
    if not peer or any(name in _OF_PROXIES for name, _ in scope["headers"]):
        return False
    try:
        return ip_address(peer[0]).is_loopback
    except ValueError:
        return False


def _pid_of(engine: Engine) -> int:
    """Return the process id of an engine; raises ApiError if it has no process of its own now."""
    if engine.state == "loaded" and isinstance(engine, _OwnProcess):
        return engine.engine_pid
    raise unavailable("There is no engine process to kill: the engine is being loaded, sleeps, or has replicas.")
