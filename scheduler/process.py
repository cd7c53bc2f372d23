"""The engine process: receive messages, run steps, send outputs. Run as `python -m caravan.scheduler.process FD`."""

import contextlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import msgspec
import torch

from caravan.model.backend import choose_backend, choose_device
from caravan.model.checkpoint.checkpoint import num_parameters
from caravan.model.cpu.weights_cache import WeightsCache
from caravan.model.kv_cache import choose_kv_dtype, kv_bytes_per_token
from caravan.model.loader import load_model, open_checkpoint
from caravan.model.tokenizer.grammar_tokenizer import grammar_tokenizer
from caravan.model.tokenizer.loader import load_tokenizer
from caravan.scheduler.channel import LENGTH, frame_length
from caravan.scheduler.config import choose_max_model_len, plan_engine
from caravan.scheduler.engine import Engine
from caravan.scheduler.grammar import Grammars
from caravan.scheduler.memory import free_gpu_memory_bytes, free_memory_bytes, give_back_freed_memory
from caravan.scheduler.message_sender import HEARTBEAT_SECONDS, MessageSender, MessageSenderHandler
from caravan.scheduler.messages import Abort, EngineFailed, EngineReady, Request, StartEngine, Subscribe, ToEngine
from caravan.scheduler.profile import Profile
from caravan.scheduler.snapshot import engine_snapshot

PREFAULTED_BYTES = 2**30  # of the KV pool, in the background; pages after these are allocated when they are written


def main() -> None:
    """Serve the API process at the other end of the inherited socket until it ends."""
    logging.getLogger("caravan").setLevel(logging.INFO)
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a service; the API process handles them
        signal.signal(number, signal.SIG_IGN)
    with (
        socket.socket(fileno=int(sys.argv[1])) as connection,
        contextlib.suppress(BrokenPipeError, ConnectionResetError),
    ):
        serve(connection)  # until the API process has ended
    os._exit(0)  # an orderly exit would interrupt threads inside the grammar library, which crashes


def serve(connection: socket.socket) -> None:
    """Load the model of the first message and run steps until the connection is closed.

    Raises BrokenPipeError or ConnectionResetError then.
    """
    inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
    sender = MessageSender(connection)
    logging.getLogger().addHandler(MessageSenderHandler(sender))
    threading.Thread(target=_read_inbox, args=(connection, inbox), daemon=True).start()
    start = inbox.get()
    assert isinstance(start, StartEngine), "the first message starts the engine"
    cache = WeightsCache(start.weights_cache_bytes)
    try:
        engine, ready, profile = start_engine(start, cache)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        sender.send(EngineFailed(reason=str(error)))
        sys.exit(1)
    engine.on_batch = sender.announce
    sender.send(ready)
    sender.start_heartbeats()
    threading.Thread(target=engine.kv_cache.prefault, args=(PREFAULTED_BYTES,), daemon=True).start()
    cache.write_in_background()
    snapshots = SnapshotClock()
    while True:
        sender.loop()
        _take_messages(engine, inbox, snapshots)
        if profile:
            profile.start_step()
        output = engine.step()
        if profile:
            profile.lap("commit")
        sender.send(output)
        if snapshots.is_due():
            sender.send(engine_snapshot(engine.scheduler))
        if profile:
            profile.lap("send")
            profile.end_step(output.stats.num_prefill_tokens + output.stats.num_decode_tokens)


def start_engine(start: StartEngine, cache: WeightsCache | None = None) -> tuple[Engine, EngineReady, Profile | None]:
    """Return the engine with its model, the message about them, and a profile if the start message asks for one.

    Without `cache` packed weights are mapped from one as the start message says, but never written.
    Raises ValueError (a broken or unsupported model, limits that do not fit), OSError, MemoryError.
    """
    started = time.monotonic()
    if start.num_threads:
        torch.set_num_threads(start.num_threads)
    device = choose_device(start.device)
    model_path = Path(start.model_path)
    checkpoint = open_checkpoint(model_path)
    max_model_len = choose_max_model_len(start.limits, checkpoint.config.max_position)
    backend = choose_backend(
        checkpoint,
        dtype=start.dtype,
        quantization=start.quantization,
        block_size=start.limits.block_size,
        is_gpu=device.type == "cuda",
    )
    kv_dtype = choose_kv_dtype(start.kv_cache_dtype, backend.dtype)
    cache = cache or WeightsCache(start.weights_cache_bytes)
    model = load_model(checkpoint, backend.dtype, device, max_model_len, backend.make_model, cache)
    give_back_freed_memory()
    free_bytes = (
        free_memory_bytes(mapped_bytes=cache.mapped_bytes) if device.type == "cpu" else free_gpu_memory_bytes(device)
    )
    config = plan_engine(
        start.limits,
        kv_bytes_per_token=kv_bytes_per_token(model.config, kv_dtype),
        max_position=model.config.max_position,
        free_memory_bytes=free_bytes,
    )
    profile = Profile(model, sys.stderr.write) if start.is_profiled else None
    grammars = Grammars(
        lambda: grammar_tokenizer(load_tokenizer(model_path).resized(model.config.vocab_size)), torch.get_num_threads()
    )
    engine = Engine(model, config, kv_dtype, device, profile, grammars)
    ready = EngineReady(
        config=config,
        vocab_size=model.config.vocab_size,
        num_parameters=num_parameters(checkpoint),
        weight_bytes=sum(weight.nbytes for weight in model.parameters()),
        kv_cache_bytes=engine.kv_cache.num_bytes,
        kv_cache_dtype=str(kv_dtype).removeprefix("torch."),
        weights=backend.text if device.type == "cpu" else f"{backend.text}, on {torch.cuda.get_device_name(device)}",
        load_seconds=time.monotonic() - started,
    )
    return engine, ready, profile


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


def _take_messages(engine: Engine, inbox: "queue.SimpleQueue[ToEngine]", snapshots: SnapshotClock) -> None:
    """Handle every received message. An idle engine waits for the first one, at most half a heartbeat period."""
    timeout = 0.0 if engine.scheduler.has_work else HEARTBEAT_SECONDS / 2
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
            case StartEngine():
                raise AssertionError("an engine is started once")


def _read_inbox(connection: socket.socket, inbox: "queue.SimpleQueue[ToEngine]") -> None:
    """Move messages from the socket to the inbox; end this process when the API process has ended."""
    decoder = msgspec.msgpack.Decoder(ToEngine)
    with contextlib.suppress(ConnectionResetError), connection.makefile("rb") as stream:
        while head := stream.read(LENGTH.size):
            body = stream.read(frame_length(head))
            inbox.put(decoder.decode(body))
    os._exit(0)  # at once, even in the middle of a step


if __name__ == "__main__":
    main()
