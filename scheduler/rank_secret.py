"""How a rank on another host and the first rank prove to each other that they have the same secret.

Each sends a random number, and the HMAC-SHA256 (RFC 2104) of both numbers under the secret, which never crosses the
network. What follows on the connection is not encrypted (SECURITY.md, threat 38).
"""

import hmac
import secrets
import socket
import time
from pathlib import Path

from caravan.scheduler.rank_socket import read_exactly

GREETING = b"caravan rank 2\r\n"  # the 2 is the version of what follows
MIN_SECRET_BYTES = 16
ADMISSION_SECONDS = 5.0  # for an answer, before the other end has shown that it has the secret
_NUM_BYTES = 32  # of a number, and of an HMAC
_REFUSAL = bytes(_NUM_BYTES)  # in place of an HMAC: the secret of the rank is another one


class NotAdmitted(Exception):
    """The other end has another secret, another version or is no rank; the text is one line."""


def read_secret(path: Path) -> bytes:
    """Return the secret in a file, without the whitespace around it; raises ValueError, in one line."""
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise ValueError(f"Cannot read the secret of ranks in {path}: {error.strerror}.") from None
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(
            f"The secret of ranks in {path} has {len(secret)} bytes; it must have at least {MIN_SECRET_BYTES}. "
            "`openssl rand -hex 32` makes one."
        )
    return secret


def admit(connection: socket.socket, secret: bytes) -> None:
    """Let a rank prove that it has the secret, and prove it to the rank; raises NotAdmitted, or OSError."""
    connection.settimeout(ADMISSION_SECONDS)
    ours = secrets.token_bytes(_NUM_BYTES)
    connection.sendall(GREETING + ours)
    answer = bytes(read_exactly(connection, 2 * _NUM_BYTES, time.monotonic() + ADMISSION_SECONDS))
    theirs, proof = answer[:_NUM_BYTES], answer[_NUM_BYTES:]
    if not hmac.compare_digest(proof, _proof(secret, b"rank", ours, theirs)):
        connection.sendall(_REFUSAL)
        raise NotAdmitted("it has another secret")
    connection.sendall(_proof(secret, b"first rank", ours, theirs))
    connection.settimeout(None)


def enter(connection: socket.socket, secret: bytes) -> None:
    """Prove to the first rank that this one has the secret, and let it prove the same.

    Raises NotAdmitted, or OSError if the connection ends before, as it does when the engine ends: then another one may
    come.
    """
    connection.settimeout(ADMISSION_SECONDS)
    greeting = bytes(read_exactly(connection, len(GREETING) + _NUM_BYTES))
    if greeting[: len(GREETING)] != GREETING:
        raise NotAdmitted("What listens there is no engine that waits for ranks, or one of another version of Caravan.")
    theirs, ours = greeting[len(GREETING) :], secrets.token_bytes(_NUM_BYTES)
    connection.sendall(ours + _proof(secret, b"rank", theirs, ours))
    proof = bytes(read_exactly(connection, _NUM_BYTES))
    if proof == _REFUSAL:
        raise NotAdmitted("The engine there has another secret. Use the same file on both hosts.")
    if not hmac.compare_digest(proof, _proof(secret, b"first rank", theirs, ours)):
        raise NotAdmitted("What listens there does not have the secret.")
    connection.settimeout(None)


def _proof(secret: bytes, who: bytes, first: bytes, second: bytes) -> bytes:
    """Return the HMAC of one side; the sides differ, so that neither can send back what it got."""
    return hmac.digest(secret, who + b"\0" + first + second, "sha256")
