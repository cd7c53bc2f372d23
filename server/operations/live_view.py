"""LiveView: snapshots of the engine, with its steps and events, for subscribers; it costs nothing without them."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace
from typing_extensions import override

from caravan.scheduler.messages import EngineSnapshot, StepOutput
from caravan.server.engine.listener import EngineListener
from caravan.server.http.sse import named_event
from caravan.server.operations.view_fields import counted, event_fields, snapshot_fields, without_engine

SNAPSHOT_SECONDS = 0.25  # between two snapshots
MAX_SUBSCRIBERS = 8
MAX_BUFFERED = 8  # snapshots per subscriber; older ones are dropped
MAX_STEPS = 200  # steps, and sequence events, per snapshot; older ones are dropped


class LiveView(EngineListener):
    """Sends snapshots of the engine, with the steps and events since the last one, to all subscribers."""

    def __init__(self, set_period: Callable[[float], None]) -> None:
        """`set_period` sets the seconds between two snapshots of the engine; 0 stops them."""
        self._set_period = set_period
        self._subscribers: set[Subscriber] = set()
        self._is_closed = False
        self._steps: deque[list[float]] = deque(maxlen=MAX_STEPS)
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_STEPS)
        self._step = 0  # the latest step of this engine process
        self._num_earlier_steps = 0  # of earlier engine processes
        self._num_views = 0
        self._last: EngineSnapshot | None = None
        self._is_replacing = False

    @property
    def is_full(self) -> bool:
        """Whether the limit of subscribers is reached."""
        return len(self._subscribers) >= MAX_SUBSCRIBERS

    @override
    def on_step(self, output: StepOutput) -> None:
        """Store a step until the next snapshot, if there are subscribers."""
        stats = output.stats
        self._step = stats.step
        if not self._subscribers:
            return
        num_tokens = stats.num_prefill_tokens + stats.num_decode_tokens
        if num_tokens:
            numbers = (self._num_steps, stats.num_prefill_tokens, stats.num_decode_tokens, 1000 * stats.step_seconds)
            self._steps.append([*numbers])
        events = [
            event_fields(event) for event in output.events if event.reason != "behind others"
        ]  # many, and in the snapshot
        if stats.num_evicted_blocks:
            events.insert(0, {"request": 0, "kind": "evict", "text": counted(stats.num_evicted_blocks, "block")})
        ended = (one for one in output.outputs if one.finish_reason is not None)
        events += [{"request": one.request_id, "kind": "finish", "text": one.finish_reason} for one in ended]
        self._add(events)

    @override
    def on_restart(self) -> None:
        """Tell the subscribers at once that the engine is gone, with its batch and pool."""
        if not self._is_replacing:
            self._is_replacing = True
            self.note("the engine is being replaced")
            if self._last is not None:
                self._send(without_engine(self._last))

    @override
    def on_replay(self, num_requests: int, down_seconds: float) -> None:
        """Continue the numbering of steps with the new engine process."""
        self._num_earlier_steps, self._step = self._num_steps, 0
        self._is_replacing = False
        self.note("the engine was replaced")

    @override
    def on_wake(self, load_seconds: float) -> None:
        """Continue the numbering of steps with the engine process that was loaded."""
        self._num_earlier_steps, self._step = self._num_steps, 0
        self._is_replacing = False
        self.note(f"the model was loaded in {load_seconds:.1f} s")

    def note(self, text: str) -> None:
        """Show an event of the engine itself, if there are subscribers."""
        if self._subscribers:
            self._add([{"request": 0, "kind": "restart", "text": text}])

    @property
    def _num_steps(self) -> int:
        return self._num_earlier_steps + self._step

    def _add(self, events: list[dict[str, Any]]) -> None:
        self._events.extend({"step": self._num_steps} | event for event in events)

    @override
    def on_snapshot(self, snapshot: EngineSnapshot) -> None:
        """Send a snapshot to all subscribers."""
        self._last = snapshot
        self._is_replacing = False
        self._send(snapshot)

    def _send(self, snapshot: EngineSnapshot) -> None:
        self._num_views += 1
        view = snapshot_fields(snapshot) | {
            "view": self._num_views,
            "is_replacing": self._is_replacing,
            "time": round(time.time(), 3),
            "step": self._num_steps,
            "steps": [*self._steps],
            "events": [*self._events],
            "changes": [
                replace(change, step=change.step - snapshot.stats.step + self._num_steps) for change in snapshot.changes
            ],
            "tables": snapshot.tables,
            "marks": snapshot.marks,
        }
        self._steps.clear()
        self._events.clear()
        body = named_event("view", view)
        for subscriber in self._subscribers:
            subscriber.put(body)

    def subscribe(self) -> "Subscriber":
        """Add a subscriber; the first one starts the snapshots, and each gets one with the tables of all sequences.

        Call `unsubscribe` at the end.
        """
        subscriber = Subscriber()
        if self._is_closed:
            subscriber.put(None)
        self._subscribers.add(subscriber)
        self._set_period(SNAPSHOT_SECONDS)
        return subscriber

    def close(self) -> None:
        """End all streams, including future ones."""
        self._is_closed = True
        for subscriber in self._subscribers:
            subscriber.put(None)

    def unsubscribe(self, subscriber: "Subscriber") -> None:
        """Remove a subscriber; the last one stops the snapshots."""
        self._subscribers.remove(subscriber)
        if not self._subscribers:
            self._set_period(0.0)
            self._last = None
            self._steps.clear()
            self._events.clear()


class Subscriber:
    """The buffered events of one subscriber."""

    def __init__(self) -> None:
        self._bodies: deque[bytes | None] = deque(maxlen=MAX_BUFFERED)
        self._has_events = asyncio.Event()

    def put(self, body: bytes | None) -> None:
        """Add an event, or None at the end of the stream; drops the oldest one if the buffer is full."""
        self._bodies.append(body)
        self._has_events.set()

    async def take(self) -> bytes | None:
        """Wait for the next event and return it, None at the end of the stream."""
        while not self._bodies:
            self._has_events.clear()
            await self._has_events.wait()
        return self._bodies.popleft()
