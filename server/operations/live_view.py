"""GET /v1/engine/events: the engine live, for those who watch; nobody pays for it while nobody does."""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from typing_extensions import override

from caravan.scheduler.messages import EngineSnapshot, SequenceEvent, StepOutput
from caravan.server.engine.listener import EngineListener
from caravan.server.http.errors import overloaded
from caravan.server.http.openapi import errors
from caravan.server.http.sse import EventStream, named_event

SNAPSHOT_SECONDS = 0.25  # between two views
MAX_SUBSCRIBERS = 8
MAX_BEHIND = 8  # views a slow watcher may be behind; older ones are left out
MAX_STEPS = 200  # steps, and events of sequences, told with one view; older ones are left out


class LiveView(EngineListener):
    """Views of the engine, with the steps and events since the view before, for any number of watchers."""

    def __init__(self, set_period: Callable[[float], None]) -> None:
        """`set_period` asks the engine for views so often, 0: never."""
        self._set_period = set_period
        self._watchers: set[Subscriber] = set()
        self._is_closed = False
        self._steps: deque[list[float]] = deque(maxlen=MAX_STEPS)
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_STEPS)
        self._step = 0  # the last one, of this engine
        self._num_earlier_steps = 0  # of engines before it

    @property
    def is_full(self) -> bool:
        """No more watchers are let in."""
        return len(self._watchers) >= MAX_SUBSCRIBERS

    @override
    def on_step(self, output: StepOutput) -> None:
        """Remember a step until the next view, if somebody watches."""
        stats = output.stats
        self._step = stats.step
        if not self._watchers:
            return
        num_tokens = stats.num_prefill_tokens + stats.num_decode_tokens
        if num_tokens:
            numbers = (self._num_steps, stats.num_prefill_tokens, stats.num_decode_tokens, 1000 * stats.step_seconds)
            self._steps.append([*numbers])
        events = [_event(event) for event in output.events if event.reason != "behind others"]  # many, and in the view
        if stats.num_evicted_blocks:
            events.insert(0, {"request": 0, "kind": "evict", "text": _counted(stats.num_evicted_blocks, "block")})
        ended = (one for one in output.outputs if one.finish_reason is not None)
        events += [{"request": one.request_id, "kind": "finish", "text": one.finish_reason} for one in ended]
        self._tell(events)

    @override
    def on_replay(self, num_requests: int, down_seconds: float) -> None:
        """Take note that another engine goes on; to those who watch, its steps come behind those of the one before."""
        self._num_earlier_steps, self._step = self._num_steps, 0
        if self._watchers:
            self._tell([{"request": 0, "kind": "restart", "text": "the engine was replaced"}])

    @property
    def _num_steps(self) -> int:
        return self._num_earlier_steps + self._step

    def _tell(self, events: list[dict[str, Any]]) -> None:
        self._events.extend({"step": self._num_steps} | event for event in events)

    @override
    def on_snapshot(self, snapshot: EngineSnapshot) -> None:
        """Hand a view to all watchers."""
        told = _written(snapshot) | {"step": self._num_steps, "steps": [*self._steps], "events": [*self._events]}
        self._steps.clear()
        self._events.clear()
        body = named_event("view", told)
        for watcher in self._watchers:
            watcher.put(body)

    def enter(self) -> "Subscriber":
        """Add a watcher, who must leave; with the first the engine begins to send views."""
        watcher = Subscriber()
        if self._is_closed:
            watcher.put(None)
        self._watchers.add(watcher)
        if len(self._watchers) == 1:
            self._set_period(SNAPSHOT_SECONDS)
        return watcher

    def close(self) -> None:
        """End what everybody watches, for good."""
        self._is_closed = True
        for watcher in self._watchers:
            watcher.put(None)

    def leave(self, watcher: "Subscriber") -> None:
        """Remove a watcher; with the last the engine ends to send views."""
        self._watchers.remove(watcher)
        if not self._watchers:
            self._set_period(0.0)
            self._steps.clear()
            self._events.clear()


class Subscriber:
    """What one watcher has not got yet."""

    def __init__(self) -> None:
        self._bodies: deque[bytes | None] = deque(maxlen=MAX_BEHIND)
        self._news = asyncio.Event()

    def put(self, body: bytes | None) -> None:
        """Add an event, or None: it was the last one; the oldest goes if there are too many."""
        self._bodies.append(body)
        self._news.set()

    async def take(self) -> bytes | None:
        """Wait for the next event and return it, None if there will be no more."""
        while not self._bodies:
            self._news.clear()
            await self._news.wait()
        return self._bodies.popleft()


def _written(view: EngineSnapshot) -> dict[str, Any]:
    stats = view.stats
    return {
        "num_running": stats.num_running,
        "num_waiting": stats.num_waiting,
        "num_blocks": stats.num_blocks,
        "num_used_blocks": stats.num_used_blocks,
        "num_cached_blocks": stats.num_cached_blocks,
        "block_size": view.block_size,
        "blocks_per_cell": view.blocks_per_cell,
        "cell_states": "".join(map(str, view.cell_states)),  # a digit for each
        "cell_owners": [[number, len([*run])] for number, run in itertools.groupby(view.cell_owners)],
        "running": [msgspec.to_builtins(sequence) for sequence in view.running],
        "waiting": [msgspec.to_builtins(sequence) for sequence in view.waiting],
    }


def _event(event: SequenceEvent) -> dict[str, Any]:
    return {"request": event.request_id, "kind": event.kind, "text": _text(event)}


def _text(event: SequenceEvent) -> str:
    """Return what there is to say of an event beside its kind."""
    match event.kind:
        case "wait":
            return event.reason or ""
        case "join" if event.num_tokens:
            return f"prefix hit, {_counted(event.num_tokens, 'token')} from the cache"
        case "chunk":
            return f"{_counted(event.num_tokens, 'token')} computed, {event.num_computed_tokens} so far"
        case "preempt":
            return f"{_counted(event.num_tokens, 'token')} to compute again"
        case _:
            return ""


def _counted(num: int, noun: str) -> str:
    return f"{num} {noun}" if num == 1 else f"{num} {noun}s"


def live_view_router(watch: LiveView, write_timeout_seconds: float) -> APIRouter:
    """Return the route that streams views."""
    router = APIRouter(tags=["operations"])

    @router.get(
        "/v1/engine/events",
        summary="Watch the engine: batch, queue and pool, four times a second",
        responses=errors(401, 429) | {200: {"content": {"text/event-stream": {}}, "description": "Views."}},
        response_class=Response,
    )
    async def events(_: Request) -> Response:
        if watch.is_full:
            raise overloaded(f"{MAX_SUBSCRIBERS} watch already.", 5)
        watcher = watch.enter()
        return EventStream(
            _events(watcher), write_timeout_seconds=write_timeout_seconds, on_end=lambda: watch.leave(watcher)
        )

    return router


async def _events(watcher: Subscriber) -> AsyncGenerator[bytes, None]:
    yield b": hello\n\n"  # so that a client knows at once that it is connected
    while (body := await watcher.take()) is not None:
        yield body
