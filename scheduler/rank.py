"""A rank of a model other than the first: run what the first rank runs. `python -m caravan.scheduler.rank FD`."""

import logging
import os
import socket
import threading

import msgspec
from torch import Tensor

from caravan.model.exchange import ExchangeFailed
from caravan.model.kv_cache import KVCache
from caravan.model.share import Share
from caravan.scheduler.channel import encode_frame
from caravan.scheduler.loaded_model import LoadedModel
from caravan.scheduler.memory import free_gpu_memory_bytes, free_memory_bytes
from caravan.scheduler.parent_connection import run_process
from caravan.scheduler.priority import lower_thread_priority
from caravan.scheduler.process import PREFAULTED_BYTES
from caravan.scheduler.rank_messages import (
    ClearBlock,
    CopyBlock,
    MakePool,
    PoolReady,
    RankFailed,
    RankLoaded,
    RunBatch,
    RunLogits,
    RunOtherLogits,
    StartRank,
    ToRank,
    batch_of,
    receive,
    rows_of,
)
from caravan.scheduler.rank_socket import wait_for_end
from caravan.scheduler.ranked_loading import load_rank
from caravan.scheduler.tracebacks import described, traceback_text


def main() -> None:
    """Serve the first rank at the other end of the inherited socket until it ends."""
    logging.disable(logging.WARNING)  # the first rank logs the same
    run_process(serve_parent)


def serve_parent(connection: socket.socket) -> None:
    """Do what `serve` does, and end this process when the first rank has ended, even in the middle of a step."""
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    serve(connection)


def serve(connection: socket.socket, joined: StartRank | None = None) -> None:
    """Load the part of the model that the first message names, and run what the first rank sends.

    A rank that has `joined` from another host has got that message, with what is its own.
    Raises BrokenPipeError or ConnectionResetError when the connection is closed.
    """
    worker = RankWorker(connection)
    try:
        worker.start(joined)
        while True:
            worker.take()
    except (BrokenPipeError, ConnectionResetError):
        raise
    except (ExchangeFailed, ValueError, OSError, MemoryError) as error:
        connection.sendall(encode_frame(RankFailed(reason=" ".join(str(error).split()))))
    except Exception as error:
        connection.sendall(encode_frame(RankFailed(reason=described(error), traceback=traceback_text(error))))


class RankWorker:
    """A part of a model and of the KV pool, and the hidden states of the last batch."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._decoder: msgspec.msgpack.Decoder[ToRank] = msgspec.msgpack.Decoder(ToRank)
        self._loaded: LoadedModel
        self._kv_cache: KVCache
        self._hidden: Tensor  # [S, hidden_size]

    def start(self, joined: StartRank | None) -> None:
        """Load what the first message says, and allocate the pool that the second one says; report both."""
        message = joined or self._receive()
        assert isinstance(message, StartRank), "the first message starts the rank"
        self._loaded = loaded = load_rank(message, self._connection)
        weight_bytes = sum(weight.nbytes for weight in loaded.model.parameters())
        mapped_bytes = loaded.cache.mapped_bytes
        free_bytes = None
        if joined is not None:
            is_cpu = loaded.device.type == "cpu"
            free_bytes = (
                free_memory_bytes(mapped_bytes=mapped_bytes) if is_cpu else free_gpu_memory_bytes(loaded.device)
            )
        self._send(RankLoaded(weight_bytes=weight_bytes, mapped_bytes=mapped_bytes, free_bytes=free_bytes))
        pool = self._receive()
        assert isinstance(pool, MakePool), "the second message allocates the pool"
        config = Share(message.rank, message.num_ranks).cache_config(loaded.model.config)
        self._kv_cache = KVCache(config, pool.num_blocks, pool.block_size, loaded.kv_dtype, loaded.device)
        self._send(PoolReady(num_bytes=self._kv_cache.num_bytes))
        threading.Thread(target=self._prefault, daemon=True).start()
        loaded.cache.write_in_background()

    def take(self) -> None:
        """Wait for the next message and do what it says; raises ConnectionResetError, or what the model raises."""
        model = self._loaded.model
        match self._receive():
            case RunBatch() as message:
                self._hidden = model.hidden_states(batch_of(message, self._loaded.device), self._kv_cache)
            case RunLogits(first_row=first, num_rows=num_rows):
                model.logits(self._hidden[first : first + num_rows])
            case RunOtherLogits() as message:
                model.logits(rows_of(message, self._hidden))
            case CopyBlock(source=source, target=target):
                self._kv_cache.copy_block(source, target)
            case ClearBlock(block=block):
                self._kv_cache.clear_block(block)
            case MakePool(num_blocks=num_blocks):
                self._kv_cache.release()
                if num_blocks:
                    self._kv_cache.allocate(num_blocks)
            case _:
                raise AssertionError("a rank is started once")

    def _prefault(self) -> None:
        lower_thread_priority()
        self._kv_cache.prefault(PREFAULTED_BYTES)

    def _receive(self) -> msgspec.Struct:
        return self._decoder.decode(receive(self._connection))

    def _send(self, message: msgspec.Struct) -> None:
        self._connection.sendall(encode_frame(message))


def _end_with_parent(connection: socket.socket) -> None:
    wait_for_end([connection])
    os._exit(0)


if __name__ == "__main__":
    main()
