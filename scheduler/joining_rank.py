"""The process of a rank that joins an engine on another host. `python -m caravan.scheduler.joining_rank FD OPTIONS`.

`caravan rank` starts it with a connection on which both ends have shown that they have the secret, and starts another
one when it ends: the next engine needs a new process.
"""

import logging
import os
import socket
import sys
import threading
from pathlib import Path

import msgspec

from caravan.model.loader import open_checkpoint
from caravan.scheduler.channel import encode_frame
from caravan.scheduler.parent_connection import run_process
from caravan.scheduler.rank import serve
from caravan.scheduler.rank_cores import rank_cores
from caravan.scheduler.rank_facts import rank_facts
from caravan.scheduler.rank_group import use_interface_of
from caravan.scheduler.rank_messages import JoinRank, JoinRefused, ToJoining, receive
from caravan.scheduler.rank_options import REFUSED, RankOptions
from caravan.scheduler.rank_socket import wait_for_end


def main() -> None:
    """Join the engine at the other end of the inherited socket, and serve it until it ends."""
    logging.disable(logging.WARNING)  # the first rank logs the same
    run_process(join)


def join(connection: socket.socket) -> None:
    """Join an engine, and compute what it sends. This process ends with it, or with the one that has started it."""
    options = msgspec.json.decode(sys.argv[2], type=RankOptions)
    threading.Thread(target=_end_with, args=(connection, sys.stdin.fileno()), daemon=True).start()
    serve_first_rank(connection, options)


def serve_first_rank(connection: socket.socket, options: RankOptions) -> None:
    """Do what `join` does, in a process that others end.

    Raises BrokenPipeError or ConnectionResetError when the connection is closed, SystemExit after a line that says why
    if the model cannot be read or the first rank refuses this one.
    """
    try:
        facts = rank_facts(open_checkpoint(Path(options.model_path)))
    except (ValueError, OSError) as error:
        raise _failed(f"Cannot use {options.model_path}: {error}") from None
    connection.sendall(encode_frame(JoinRank(facts)))
    message = msgspec.msgpack.decode(receive(connection), type=ToJoining)
    if isinstance(message, JoinRefused):
        raise _failed(f"The engine at {options.address} refuses this rank. {message.reason}")
    print(f"Rank {message.rank} of {message.num_ranks} of the engine at {options.address}.", flush=True)
    use_interface_of(connection)
    num_threads = options.num_threads or message.start.num_threads
    own = msgspec.structs.replace(message.start, model_path=options.model_path, num_threads=num_threads)
    (cores,) = rank_cores(1)  # all of this host
    serve(connection, msgspec.structs.replace(message, start=own, cores=cores))


def _failed(reason: str) -> SystemExit:
    print(" ".join(reason.split()), file=sys.stderr, flush=True)
    return SystemExit(REFUSED)


def _end_with(connection: socket.socket, parent: int) -> None:
    wait_for_end([connection, parent])
    os._exit(0)


if __name__ == "__main__":
    main()
