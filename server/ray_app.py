"""The application of Ray Serve that `caravan deploy` starts: `import_path: caravan.server.ray_app:engines`.

Only processes of Ray import this module. A replica of the deployment owns an actor, which owns the engine process: API
processes find the actor by its name and ask it for the address of a socket, so that a step costs no call of Ray. Serve
places, watches, scales and drains the replicas.
"""

import asyncio
import os
from math import ceil
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingContext
from ray.util import get_node_ip_address
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from caravan.download.errors import ModelNotFound, ModelUnavailable
from caravan.download.resolve import resolve_model
from caravan.scheduler.messages import StartEngine
from caravan.server.engine.process import ENGINE_PROGRAM
from caravan.server.replicas.engine_owner import EngineOwner
from caravan.server.replicas.ray_names import NAMESPACE, actor_name
from caravan.server.replicas.replica_server import ReplicaAddress, ReplicaServer
from caravan.server.settings import Settings, replica_settings

DRAIN_SECONDS = 6.0  # for the requests of a replica that is to end
SHUTDOWN_SECONDS = 10.0  # for its whole end; Serve waits 2 s before it begins


@ray.remote(num_cpus=0, max_restarts=-1, max_concurrency=1000)
class EngineActor:
    """Owns the engine process of a replica. If this process ends, Ray starts another one under the same name."""

    def __init__(self, start: StartEngine, hang_seconds: float, devices: str | None, program: tuple[str, ...]) -> None:
        """`devices` are the GPUs that Ray gave to the replica, as CUDA_VISIBLE_DEVICES; `program` is the engine's."""
        if devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = devices
        self._owner = EngineOwner(start, program, hang_seconds=hang_seconds)
        self._server = ReplicaServer(self._owner)
        self._address: asyncio.Future[ReplicaAddress] | None = None
        self._running: asyncio.Task[None] | None = None

    async def ready(self) -> None:
        """Return when the model is loaded; raises EngineStartFailed."""
        self._run()
        await self._owner.ready()

    async def address(self) -> ReplicaAddress:
        """Return where API processes connect. Only callers with the token of the cluster learn the secret."""
        self._run()
        if self._address is None:
            self._address = asyncio.ensure_future(self._server.start(get_node_ip_address()))
        return await self._address

    async def load(self) -> dict[str, float]:
        """Return what autoscaling is decided by."""
        return {"queued_tokens": self._owner.num_queued_tokens(), "requests": self._owner.num_requests}

    async def drain(self, timeout_seconds: float) -> None:
        """Get no more requests, and wait for those that run."""
        await self._owner.drain(timeout_seconds)

    def _run(self) -> None:
        if self._running is None:
            self._running = asyncio.create_task(self._owner.run())


class Engines:
    """A replica as Serve sees it. It takes no requests: those go to its actor."""

    def __init__(self, settings: dict[str, Any], program: tuple[str, ...] = ENGINE_PROGRAM) -> None:
        """Start the actor on this node, and return when it has loaded the model."""
        replica = serve.get_replica_context().replica_id
        start, hang_seconds = _start(replica_settings(settings))
        node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor = EngineActor.options(  # type: ignore[attr-defined]
            name=actor_name(replica.deployment_id.app_name, replica.unique_id),
            namespace=NAMESPACE,
            scheduling_strategy=node,
        ).remote(start, hang_seconds, os.environ.get("CUDA_VISIBLE_DEVICES"), program)
        ray.get(self._actor.ready.remote())

    async def check_health(self) -> None:
        """Raise an error if the actor does not answer."""
        await self._actor.load.remote()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what `queued_tokens_policy` reads."""
        load: dict[str, float] = await self._actor.load.remote()
        return load

    async def __del__(self) -> None:
        """Finish the requests before the replica ends; what is left then is resumed by other replicas."""
        await self._actor.drain.remote(DRAIN_SECONDS)


def _start(settings: Settings) -> tuple[StartEngine, float]:
    """Return how the engine of a replica is started; raises ValueError if the model cannot be found."""
    try:
        path = resolve_model(settings.model, print)
        draft_path = None if settings.draft_model is None else resolve_model(settings.draft_model, print)
    except (ModelNotFound, ModelUnavailable) as error:
        raise ValueError(str(error)) from None
    return settings.start_engine(path, draft_path), settings.engine_timeout


def engines(args: dict[str, Any]) -> serve.Application:
    """Return the application for the `args` of its entry in the file; raises ValueError for a wrong one."""
    replica_settings(args)
    deployment = serve.deployment(Engines, name="Engines", graceful_shutdown_timeout_s=SHUTDOWN_SECONDS)
    return deployment.bind(args)


class QueuedTokens:
    """Autoscaling: as many replicas as the tokens that wait and the requests that run need."""

    def __init__(self, queued_tokens: float = 4000.0, requests: float = 32.0) -> None:
        """The arguments, `policy_kwargs` in the file, are what one replica shall have at most."""
        self._limits = {"queued_tokens": queued_tokens, "requests": requests}

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas, which Serve keeps within its limits, and no state."""
        sums = {
            name: sum(values[-1].value for values in replicas.values() if values)
            for name, replicas in (context.raw_metrics or {}).items()
        }
        return max(ceil(sums.get(name, 0.0) / limit) for name, limit in self._limits.items()), {}
