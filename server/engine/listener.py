"""EngineListener: the engine's events, as other parts of the server receive them."""

from collections.abc import Sequence

from typing_extensions import override

from caravan.scheduler.messages import EngineSnapshot, StepOutput


class EngineListener:
    """Base class of the parts that receive engine events; subclasses override those that they need.

    Events arrive on the event loop, in order. A listener must return at once.
    """

    def on_step(self, output: StepOutput) -> None:
        """Handle the result of a step, before its tokens reach their readers."""

    def on_snapshot(self, snapshot: EngineSnapshot) -> None:
        """Handle the state of batch, queue and pool; sent only while there are subscribers."""

    def on_disconnect(self) -> None:
        """The engine process has ended, or the client was stopped."""

    def on_restart(self) -> None:
        """A new engine process is about to be started."""

    def on_replay(self, num_requests: int, down_seconds: float) -> None:
        """A new engine process resumes `num_requests` requests after `down_seconds` of downtime."""

    def on_wake(self, load_seconds: float) -> None:
        """An engine that was asleep has loaded its model, which took `load_seconds`, and gets its requests."""

    def on_sleep(self) -> None:
        """The engine process was ended to free its memory."""


class EngineListeners(EngineListener):
    """Passes each event to several listeners, in order."""

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

    @override
    def on_wake(self, load_seconds: float) -> None:
        for listener in self._listeners:
            listener.on_wake(load_seconds)

    @override
    def on_sleep(self) -> None:
        for listener in self._listeners:
            listener.on_sleep()
