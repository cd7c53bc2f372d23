"""The connection of an engine process to the API process, which started it."""

import contextlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import msgspec

from caravan.scheduler.channel import LENGTH, frame_length
from caravan.scheduler.config import Shortage
from caravan.scheduler.message_sender import MessageSender, MessageSenderHandler
from caravan.scheduler.messages import EngineFailed, StartEngine, ToEngine

logger = logging.getLogger(__name__)

Inbox = queue.SimpleQueue[msgspec.Struct]  # messages of the API process


def run_process(serve: Callable[[socket.socket], None]) -> None:
    """Serve the API process at the other end of the socket that is the first argument, until it ends."""
    logging.getLogger("caravan").setLevel(logging.INFO)
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a service; the API process handles them
        signal.signal(number, signal.SIG_IGN)
    with (
        socket.socket(fileno=int(sys.argv[1])) as connection,
        contextlib.suppress(BrokenPipeError, ConnectionResetError),
    ):
        serve(connection)  # until the API process has ended
    os._exit(0)  # an orderly exit would interrupt threads inside the grammar library, which crashes


def open_connection(connection: socket.socket) -> tuple[StartEngine, Inbox, MessageSender]:
    """Return the first message, an inbox for all others and a sender, which also sends the log of this process.

    A thread fills the inbox, and ends this process when the API process has ended.
    """
    inbox: Inbox = queue.SimpleQueue()
    sender = MessageSender(connection)
    logging.getLogger().addHandler(MessageSenderHandler(sender))
    threading.Thread(target=_read_inbox, args=(connection, inbox), daemon=True).start()
    start = inbox.get()
    assert isinstance(start, StartEngine), "the first message starts the engine"
    return start, inbox, sender


@contextlib.contextmanager
def reported_failures(sender: MessageSender) -> Iterator[None]:
    """Report a failure to load the model, then exit."""
    try:
        yield
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        is_permanent = isinstance(error, ValueError) and not isinstance(error, Shortage)
        sender.send(EngineFailed(reason=str(error), is_permanent=is_permanent))
        sys.exit(1)
    except Exception as error:  # Triton and the compiler that it starts have classes of their own
        logger.exception("The engine cannot start.")
        sender.send(EngineFailed(reason=f"{type(error).__name__}: {error}"))
        sys.exit(1)


def _read_inbox(connection: socket.socket, inbox: Inbox) -> None:
    """Move messages from the socket to the inbox; end this process when the API process has ended."""
    decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
    with contextlib.suppress(ConnectionResetError), connection.makefile("rb") as stream:
        while head := stream.read(LENGTH.size):
            body = stream.read(frame_length(head))
            inbox.put(decoder.decode(body))
    os._exit(0)  # at once, even in the middle of a step
