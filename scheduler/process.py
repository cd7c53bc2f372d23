"""The engine process: receive messages, run steps, send outputs. Run as `python -m caravan.scheduler.process FD`."""

import contextlib
import functools
import logging
import os
import queue
import socket
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from caravan.scheduler.engine import Engine
from caravan.scheduler.loaded_model import LoadedModel, load
from caravan.scheduler.memory import give_back_freed_memory
from caravan.scheduler.memory_shortage import step_with_room
from caravan.scheduler.message_sender import HEARTBEAT_SECONDS, MessageSender
from caravan.scheduler.messages import (
    Abort,
    AdapterChecked,
    AdapterSource,
    CheckAdapter,
    Request,
    SetAdapters,
    Subscribe,
)
from caravan.scheduler.parent_connection import Inbox, open_connection, reported_failures, run_process
from caravan.scheduler.priority import lower_thread_priority
from caravan.scheduler.snapshots import Snapshots

if TYPE_CHECKING:
    from caravan.scheduler.ranks import Ranks

logger = logging.getLogger(__name__)

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
    sender.loop()
    sender.start_heartbeats()  # a standby is expected to send them: on a GPU an engine takes long to record its steps
    with reported_failures(sender):
        engine, ready, profile = loaded.make_engine()
    engine.on_batch = sender.announce
    if loaded.ranks is not None:
        loaded.ranks.watch(functools.partial(_end, loaded.ranks))
    sender.send(ready)
    threading.Thread(target=_prefault, args=(engine,), daemon=True).start()
    loaded.cache.write_in_background()
    snapshots = Snapshots(sender.send)
    while True:
        sender.loop()
        _take_messages(engine, inbox, snapshots, sender)
        if profile:
            profile.start_step()
        output = step_with_room(engine)
        if profile:
            profile.lap("commit")
        sender.send(output)
        if snapshots.period_seconds:
            snapshots.after_step(engine.scheduler, output.stats)
        if profile:
            profile.lap("send")
            profile.end_step(output.stats.num_prefill_tokens + output.stats.num_decode_tokens)


def _prefault(engine: Engine) -> None:
    """Prefault the first part of the KV pool, in processor time that steps do not need."""
    lower_thread_priority()
    engine.kv_cache.prefault(PREFAULTED_BYTES)


def _end(ranks: "Ranks", reason: str) -> None:
    """End this process and its ranks, as a crash would: another engine resumes the requests."""
    logger.error("The engine ends, because a rank failed. %s", reason)
    ranks.kill()
    os._exit(1)


def _take_messages(engine: Engine, inbox: Inbox, snapshots: Snapshots, sender: MessageSender) -> None:
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
                if snapshots.period_seconds:
                    snapshots.queue(message.request_id)
            case Abort(request_id=request_id):
                engine.scheduler.abort(request_id)
            case Subscribe(period_seconds=period_seconds):
                snapshots.subscribe(period_seconds)
            case CheckAdapter(source=source):
                _check_adapter(engine, source, sender)
            case SetAdapters(sources=sources):
                assert engine.adapters is not None, "the start message says that there can be some"
                engine.adapters.set_sources(sources)
                give_back_freed_memory()
            case _:
                raise AssertionError("an engine is started once")


def _check_adapter(engine: Engine, source: AdapterSource, sender: MessageSender) -> None:
    """Let a thread read an adapter, which answers when it has done so."""
    assert engine.adapters is not None, "the start message says that there can be some"

    def answer(future: "Future[str]") -> None:
        with contextlib.suppress(OSError):  # the API process has ended
            sender.send(AdapterChecked(name=source.name, problem=future.result()))

    engine.adapters.check(source).add_done_callback(answer)


if __name__ == "__main__":
    main()
