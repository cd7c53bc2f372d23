"""ReplicaSource: where the replicas of a set come from."""

from typing import Protocol

from caravan.server.replicas.replica_set import ReplicaSet


class ReplicaSource(Protocol):
    """Adds the replicas of an application to a set, and removes those that have ended."""

    async def start(self, replicas: ReplicaSet) -> None:
        """Begin; raises EngineStartFailed if there is no such application."""

    async def stop(self) -> None:
        """Change the set no more; the caller has stopped the set before."""
