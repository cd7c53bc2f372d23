"""The engine process: receive messages, run steps, send outputs. Run as `python -m caravan.scheduler.process FD`."""

import queue
import socket
import threading
import time

from caravan.scheduler.engine import Engine
from caravan.scheduler.loaded_model import LoadedModel, load
from caravan.scheduler.memory_shortage import step_with_room
from caravan.scheduler.message_sender import HEARTBEAT_SECONDS, MessageSender
from caravan.scheduler.messages import Abort, Request, Subscribe
from caravan.scheduler.parent_connection import Inbox, open_connection, reported_failures, run_process
from caravan.scheduler.priority import lower_thread_priority
from caravan.scheduler.snapshot import engine_snapshot

PREFAULTED_BYTES = 2**30  # of the KV pool, in the background; pages after these are allocated when they are written


def main() -> None:
    """Serve the API process at the other end of the inherited socket until it ends."""
    run_process(serve)


def serve(connection: socket.socket) -> None:
    """Load the model of the first message and run steps until the connection is closed.

    Raises BrokenPipeError or ConnectionResetError then.
    """
    start, inbox, sender = open_connection(connection)
    with reported_failures(sender):
        loaded = load(start)
    run_engine(loaded, inbox, sender)


def run_engine(loaded: LoadedModel, inbox: Inbox, sender: MessageSender) -> None:
    """Allocate the KV pool of a loaded model and run steps until the connection is closed."""
    with reported_failures(sender):
        engine, ready, profile = loaded.make_engine()
    engine.on_batch = sender.announce
    sender.send(ready)
    sender.start_heartbeats()
    threading.Thread(target=_prefault, args=(engine,), daemon=True).start()
    loaded.cache.write_in_background()
    snapshots = SnapshotClock()
    while True:
        sender.loop()
        _take_messages(engine, inbox, snapshots)
        if profile:
            profile.start_step()
        output = step_with_room(engine)
        if profile:
            profile.lap("commit")
        sender.send(output)
        if snapshots.is_due():
            sender.send(engine_snapshot(engine.scheduler))
        if profile:
            profile.lap("send")
            profile.end_step(output.stats.num_prefill_tokens + output.stats.num_decode_tokens)


class SnapshotClock:
    """The times at which snapshots are sent."""

    def __init__(self) -> None:
        self.period_seconds = 0.0  # 0: no snapshots
        self._due_at_seconds = 0.0

    def is_due(self) -> bool:
        """Return whether a snapshot is due; then the next one is due a period later."""
        if not self.period_seconds or (now := time.monotonic()) < self._due_at_seconds:
            return False
        self._due_at_seconds = now + self.period_seconds
        return True


def _prefault(engine: Engine) -> None:
    """Prefault the first part of the KV pool, in processor time that steps do not need."""
    lower_thread_priority()
    engine.kv_cache.prefault(PREFAULTED_BYTES)


def _take_messages(engine: Engine, inbox: Inbox, snapshots: SnapshotClock) -> None:
    """Handle every received message. An idle engine waits for the first one, at most half a heartbeat period."""
    timeout = 0.0 if engine.has_work else HEARTBEAT_SECONDS / 2
    while True:
        try:
            message = inbox.get(timeout=timeout) if timeout else inbox.get_nowait()
        except queue.Empty:
            return
        timeout = 0.0
        match message:
            case Request():
                engine.add(message)
            case Abort(request_id=request_id):
                engine.scheduler.abort(request_id)
            case Subscribe(period_seconds=period_seconds):
                snapshots.period_seconds = period_seconds
            case _:
                raise AssertionError("an engine is started once")


if __name__ == "__main__":
    main()
