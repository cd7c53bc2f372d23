"""An engine process without a model: it answers every request with some tokens, one frame each step.

Between two frames it reads memory on every core, as an engine that reads its weights does: an idle processor, or
one with warm caches, would make the API process look several times more or less expensive than it is.

Run by the API process in place of `caravan.scheduler.process`, as `python fake_engine.py STEP_MS TOKENS_PER_STEP FD`.
"""

import contextlib
import itertools
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np

from caravan.scheduler.channel import LENGTH, encode_frame, frame_length
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import (
    Abort,
    EngineReady,
    FinishReason,
    Request,
    SequenceOutput,
    StepOutput,
    StepStats,
    ToEngine,
)

VOCAB_SIZE = 49152  # of the default model
FIRST_WORD = 1000  # the ids below are special or single bytes
WEIGHT_BYTES = 64 * 1024 * 1024
SLICE_BYTES = 4 * 1024 * 1024  # read between two looks at the clock


class FakeEngine:
    """The requests that run, and how many tokens each of them has."""

    def __init__(self, tokens_per_step: int) -> None:
        self._tokens_per_step = tokens_per_step
        self._lock = threading.Lock()
        self._running: dict[int, tuple[Request, int]] = {}
        self._step = 0

    def take(self, message: ToEngine) -> None:
        """Begin or end a request."""
        with self._lock:
            match message:
                case Request(request_id=request_id):
                    self._running[request_id] = (message, 0)
                case Abort(request_id=request_id):
                    self._running.pop(request_id, None)

    def step(self) -> StepOutput:
        """Return the next tokens of every request."""
        with self._lock:
            self._step += 1
            outputs = [self._extend(request, num_tokens) for request, num_tokens in [*self._running.values()]]
            stats = StepStats(step=self._step, num_running=len(self._running), num_decode_tokens=len(outputs))
        return StepOutput(outputs=outputs, stats=stats)

    def _extend(self, request: Request, num_tokens: int) -> SequenceOutput:
        end = min(num_tokens + self._tokens_per_step, request.params.max_tokens)
        finish_reason: FinishReason | None = None
        if end == request.params.max_tokens:
            finish_reason = "length"
            del self._running[request.request_id]
        else:
            self._running[request.request_id] = (request, end)
        return SequenceOutput(
            request_id=request.request_id,
            token_ids=[
                FIRST_WORD + (17 * request.request_id + 31 * position) % (VOCAB_SIZE - FIRST_WORD)
                for position in range(num_tokens, end)
            ],
            finish_reason=finish_reason,
            scheduled_at_seconds=1.0,
        )


def main() -> None:
    """Serve the API process at the other end of the inherited socket until it ends."""
    step_seconds, tokens_per_step, descriptor = float(sys.argv[1]) / 1000, int(sys.argv[2]), int(sys.argv[3])
    connection = socket.socket(fileno=descriptor)
    engine = FakeEngine(tokens_per_step)
    threading.Thread(target=_read, args=(connection, engine), daemon=True).start()
    config = EngineConfig(num_blocks=100_000, max_num_seqs=1024, max_model_len=8192)
    ready = EngineReady(
        config=config,
        vocab_size=VOCAB_SIZE,
        num_parameters=0,
        weight_bytes=0,
        kv_cache_bytes=1,
        kv_cache_dtype="none",
        weights="none: a fake engine",
        load_seconds=0.0,
    )
    connection.sendall(encode_frame(ready))
    weights = np.ones(WEIGHT_BYTES // 8)
    num_threads = os.cpu_count() or 1
    with ThreadPoolExecutor(num_threads) as threads, contextlib.suppress(ConnectionError):
        while True:
            due_seconds = time.monotonic() + step_seconds
            list(threads.map(_compute, np.array_split(weights, num_threads), [due_seconds] * num_threads))
            connection.sendall(encode_frame(engine.step()))  # frequent enough to need no heartbeat


def _compute(weights: "np.ndarray[tuple[int], np.dtype[np.float64]]", due_seconds: float) -> None:
    """Read the weights repeatedly until the time is over."""
    slices = itertools.cycle(np.array_split(weights, max(1, weights.nbytes // SLICE_BYTES)))
    while time.monotonic() < due_seconds:
        next(slices).sum()  # lets other threads run meanwhile


def _read(connection: socket.socket, engine: FakeEngine) -> None:
    decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
    with contextlib.suppress(ConnectionResetError), connection.makefile("rb") as stream:
        while head := stream.read(LENGTH.size):
            engine.take(decoder.decode(stream.read(frame_length(head))))


if __name__ == "__main__":
    main()
