"""ReplicaListener: the events of several engines, as other parts of the server receive them."""

from collections.abc import Collection

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import EngineSnapshot, StepOutput


class ReplicaListener:
    """Base class of the parts that receive the events of replicas; subclasses override those that they need.

    Events arrive on the event loop, in order. A listener must return at once.
    """

    def on_step(self, output: StepOutput, total: StepOutput) -> None:
        """Handle the result of a step of one replica, before its tokens reach their readers.

        `total` is the same with the gauges of all replicas together, and a number that counts the steps of all.
        """

    def on_snapshot(self, snapshot: EngineSnapshot) -> None:
        """Handle the state of the batches, queues and pools of all replicas; only while there are subscribers."""

    def on_route(self, request_id: int, replica: str, num_known_tokens: int) -> None:
        """A request goes to a replica, which has computed this many of its first tokens before."""

    def on_loss(self, replica: str, request_ids: Collection[int]) -> None:
        """A replica was lost; these requests go to others."""

    def on_capacity(self, config: EngineConfig, num_replicas: int) -> None:
        """The number of connected replicas has changed; `config` has the limits of all together."""

    def on_disconnect(self) -> None:
        """No replica is left, or the server ends."""
