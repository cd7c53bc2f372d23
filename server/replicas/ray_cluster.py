"""RayCluster: the replicas of an application of Ray Serve. Importing this module imports Ray."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import list_named_actors

from caravan.server.engine.process import EngineStartFailed
from caravan.server.replicas.ray_names import NAMESPACE, actor_name, replica_of
from caravan.server.replicas.replica import ReplicaLost
from caravan.server.replicas.replica_server import ReplicaAddress
from caravan.server.replicas.replica_set import ReplicaSet
from caravan.server.replicas.socket_replica import SocketReplica

LOOK_PERIOD_SECONDS = 1.0  # between two looks at which replicas there are

logger = logging.getLogger(__name__)


class ActorAddress:
    """Asks the actor of a replica where it listens. Its process can be another one each time."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def __call__(self) -> ReplicaAddress:
        """Return the address; raises ReplicaLost."""
        try:
            address: ReplicaAddress = await self._actor.address.remote()
        except RayError as error:
            raise ReplicaLost(_line(error)) from None
        return address


class RayCluster:
    """Connects to the cluster of RAY_ADDRESS, or of this machine, and follows the replicas of an application."""

    def __init__(self, application: str) -> None:
        self._application = application
        self._looking: asyncio.Task[None] | None = None

    async def start(self, replicas: ReplicaSet) -> None:
        """Connect; raises EngineStartFailed if there is no cluster."""
        await asyncio.to_thread(self._connect)
        self._follow(replicas, await asyncio.to_thread(self._names))
        if not replicas.names:
            logger.warning("The application %s has no replica yet; waiting for one.", self._application)
        self._looking = asyncio.create_task(self._look(replicas))

    async def stop(self) -> None:
        """Leave the cluster; no call to a replica may follow."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
            self._looking = None
            await asyncio.to_thread(ray.shutdown)

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        logging.getLogger("ray").setLevel(logging.ERROR)  # it warns that a thread sets no handler for SIGTERM
        try:
            ray.init(
                address=os.environ.get("RAY_ADDRESS", "auto"),
                namespace=NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
                include_dashboard=False,
            )
        except (RayError, ConnectionError, RuntimeError, ValueError) as error:
            raise EngineStartFailed(f"There is no cluster of Ray at RAY_ADDRESS: {_line(error)}") from None

    def _names(self) -> set[str]:
        """Return the names of the replicas that Ray knows."""
        actors = list_named_actors(all_namespaces=True)
        found = (replica_of(self._application, one["name"]) for one in actors if one["namespace"] == NAMESPACE)
        return {name for name in found if name is not None}

    def _follow(self, replicas: ReplicaSet, names: Iterable[str]) -> None:
        """Add new replicas to the set, and remove those that have ended."""
        names = {*names}
        for name in {*replicas.names} - names:
            replicas.remove(name)
        for name in names - {*replicas.names}:
            with contextlib.suppress(ValueError):  # it has ended meanwhile
                actor = ray.get_actor(actor_name(self._application, name), NAMESPACE)
                replicas.add(SocketReplica(name, ActorAddress(actor)))

    async def _look(self, replicas: ReplicaSet) -> None:
        while True:
            await asyncio.sleep(LOOK_PERIOD_SECONDS)
            try:
                names = await asyncio.to_thread(self._names)
            except RayError as error:  # replicas can answer without the head node
                logger.warning("The cluster of Ray does not answer: %s", _line(error))
            else:
                self._follow(replicas, names)


def _line(error: Exception) -> str:
    """Return an error of Ray, which can have a page of text, as one short line."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}"
