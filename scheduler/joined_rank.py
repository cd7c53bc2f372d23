"""Ranks on other hosts: the first rank waits until they have joined, and knows each as a connection."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from caravan.model.loader import open_checkpoint
from caravan.scheduler.channel import encode_frame
from caravan.scheduler.messages import StartEngine
from caravan.scheduler.rank_facts import difference, rank_facts
from caravan.scheduler.rank_messages import JoinRank, JoinRefused, receive
from caravan.scheduler.rank_secret import NotAdmitted, admit, read_secret
from caravan.scheduler.rank_socket import has_ended, listen, tune

MAX_PENDING = 32  # connections of which it is not known yet whether they have the secret
PREPARATION_SECONDS = 600.0  # for a rank to read its model's files, and to build its kernels
REJOIN_SECONDS = 120.0  # for the ranks of an engine that has failed
POLL_SECONDS = 0.2

logger = logging.getLogger(__name__)


@dataclass
class JoinedRank:
    """A rank on another host, in the form of a process of this one: what can be done is to close its connection."""

    connection: socket.socket
    address: str  # of its host
    returncode: int | None = None
    pid: int = 0

    @property
    def is_on_this_host(self) -> bool:
        """Whether the rank has come from the host it has come to."""
        return self.address == str(self.connection.getsockname()[0])

    def wait(self, timeout: float | None = None) -> int:  # noqa: ARG002
        """Return at once: nobody here learns when the process has exited."""
        return 0

    def kill(self) -> None:
        """Close the connection, which ends the process."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def wait_for_ranks(start: StartEngine) -> list[JoinedRank]:
    """Return the ranks on other hosts when as many have joined as the engine needs.

    Each must have the secret, and agree on everything that bits depend on. A first engine waits for as long as it
    takes, one that replaces another for REJOIN_SECONDS, since requests wait for it. Raises ValueError, or OSError: the
    address cannot be used, or ranks are missing.
    """
    secret = read_secret(Path(start.rank_secret_path))
    facts = rank_facts(open_checkpoint(Path(start.model_path)))
    logger.info("Number of ranks that are to join at %s: %d.", start.rank_address, start.num_joining_ranks)
    pending = threading.Semaphore(MAX_PENDING)
    lock = threading.Lock()
    joined: list[JoinedRank] = []
    is_open = True

    def examine(connection: socket.socket, address: str) -> None:
        is_admitted = _is_admitted(connection, address, secret, facts)
        pending.release()
        with lock:
            if is_admitted and is_open and len(joined) < start.num_joining_ranks:
                joined.append(JoinedRank(connection, address))
                logger.info("A rank at %s has joined.", address)
            else:
                connection.close()

    started = time.monotonic()
    with listen(start.rank_address) as listener:
        listener.settimeout(POLL_SECONDS)
        while is_open:
            if start.is_replacement and time.monotonic() > started + REJOIN_SECONDS:
                for one in joined:
                    one.connection.close()
                raise ConnectionError(
                    f"Only {len(joined)} of {start.num_joining_ranks} ranks have joined at {start.rank_address} within "
                    f"{REJOIN_SECONDS:g} seconds. Start `caravan rank` on the other hosts."
                )
            with contextlib.suppress(TimeoutError):
                connection, peer = listener.accept()
                if pending.acquire(blocking=False):
                    threading.Thread(target=examine, args=(connection, str(peer[0])), daemon=True).start()
                else:
                    connection.close()
            with lock:
                for one in [one for one in joined if has_ended(one.connection)]:
                    one.connection.close()
                    joined.remove(one)
                is_open = len(joined) < start.num_joining_ranks
    return joined


def _is_admitted(connection: socket.socket, address: str, secret: bytes, facts: Mapping[str, str]) -> bool:
    """Return whether a connection is that of a rank that can compute a part of the model. It gets a reason why not."""
    try:
        tune(connection)
        admit(connection, secret)
        connection.settimeout(PREPARATION_SECONDS)
        theirs = msgspec.msgpack.decode(receive(connection), type=JoinRank).facts
        problem = difference(facts, theirs)
        if problem:
            connection.sendall(encode_frame(JoinRefused(problem)))
            logger.warning("The rank at %s is refused. %s", address, problem)
    except NotAdmitted as error:
        logger.warning("A connection from %s is refused: %s.", address, error)
        return False
    except (OSError, ValueError):  # it sent nothing, or no message
        logger.warning("A connection from %s has ended before it joined.", address)
        return False
    return not problem
