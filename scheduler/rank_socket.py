"""Sockets between ranks: addresses, exact reads, and how the end of a rank on another host is noticed."""

import re
import select
import socket
import time
from collections.abc import Sequence

# The other end has closed, or is gone: a local socket reports a hang-up, one of TCP that no more can be read.
GONE = getattr(select, "POLLRDHUP", 0)
KEEP_ALIVE_SECONDS = 5  # without a packet, after which a host is asked whether it is there
NUM_PROBES = 3  # without an answer, a second each: it is gone

_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.%\w]+\]|[\w.-]+):(?P<port>\d{1,5})", re.ASCII)


def host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of HOST:PORT, where an IPv6 address stands in brackets; raises ValueError."""
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > 65535:
        raise ValueError(f"{ascii(address)[1:-1][:80]} is not HOST:PORT, such as 10.0.0.1:7000 or [fd00::1]:7000.")
    return found["host"].strip("[]"), int(found["port"])


def listen(address: str) -> socket.socket:
    """Return a socket that listens on HOST:PORT; raises ValueError, or OSError if the address cannot be used."""
    host, port = host_and_port(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, reuse_port=False)
    except OSError as error:
        raise OSError(f"Cannot listen on {address} for ranks: {error.strerror or error}.") from None


def tune(connection: socket.socket) -> None:
    """Send small messages at once, and notice a host that is gone within some seconds."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", KEEP_ALIVE_SECONDS), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", NUM_PROBES)):
        if hasattr(socket, name):  # macOS lacks the first
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def read_exactly(connection: socket.socket, num_bytes: int, until_seconds: float | None = None) -> bytearray:
    """Return the next bytes of a stream; raises ConnectionResetError if it ends before.

    With a time of time.monotonic(), TimeoutError then, however slowly bytes come.
    """
    body = bytearray(num_bytes)
    rest = memoryview(body)
    while rest:
        if until_seconds is not None:
            connection.settimeout(max(until_seconds - time.monotonic(), 1e-3))
        num_read = connection.recv_into(rest)
        if not num_read:
            raise ConnectionResetError("The other process has ended.")
        rest = rest[num_read:]
    return body


def wait_for_end(connections: Sequence[socket.socket | int]) -> None:
    """Return when the other end of one of the sockets or pipes has closed."""
    poll = select.poll()
    for one in connections:
        poll.register(one, GONE)
    poll.poll()


def has_ended(connection: socket.socket) -> bool:
    """Return whether the other end of a socket has closed."""
    poll = select.poll()
    poll.register(connection, GONE)
    return bool(poll.poll(0))
