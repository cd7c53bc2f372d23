"""EngineListener: what can be learned from the engine while it runs."""

from collections.abc import Sequence

from typing_extensions import override

from caravan.scheduler.messages import EngineSnapshot, StepOutput


class EngineListener:
    """One part of the server that follows the engine; it overrides the events it needs.

    Events arrive on the event loop, in order. A listener must return at once.
    """

    def on_step(self, output: StepOutput) -> None:
        """Take in the result of one step, before its tokens reach their readers."""

    def on_snapshot(self, snapshot: EngineSnapshot) -> None:
        """Take in the state of batch, queue and pool; sent only while somebody subscribes to it."""

    def on_disconnect(self) -> None:
        """The engine process has ended, or the client was stopped."""

    def on_restart(self) -> None:
        """Another engine process is about to be started."""

    def on_replay(self, num_requests: int, down_seconds: float) -> None:
        """A new engine process resumes this number of requests; there was none for `down_seconds`."""


class EngineListeners(EngineListener):
    """Passes each event on to several listeners, in their order."""

    def __init__(self, listeners: Sequence[EngineListener] = ()) -> None:
        self._listeners = tuple(listeners)

    @override
    def on_step(self, output: StepOutput) -> None:
        for listener in self._listeners:
            listener.on_step(output)

    @override
    def on_snapshot(self, snapshot: EngineSnapshot) -> None:
        for listener in self._listeners:
            listener.on_snapshot(snapshot)

    @override
    def on_disconnect(self) -> None:
        for listener in self._listeners:
            listener.on_disconnect()

    @override
    def on_restart(self) -> None:
        for listener in self._listeners:
            listener.on_restart()

    @override
    def on_replay(self, num_requests: int, down_seconds: float) -> None:
        for listener in self._listeners:
            listener.on_replay(num_requests, down_seconds)
