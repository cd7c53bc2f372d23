"""Frames: how a message becomes bytes on the socket and back.

A frame is its length as four bytes, little-endian, then one msgpack object tagged with its type.
"""

import struct
from collections.abc import Iterator
from typing import TypeVar

import msgspec

LENGTH = struct.Struct("<I")
MAX_FRAME_BYTES = 256 * 1024 * 1024  # far above any real frame; a larger length means a broken stream

MessageT = TypeVar("MessageT")


def encode_frame(message: msgspec.Struct) -> bytes:
    """Return the bytes of a message, length first."""
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


def frame_length(head: bytes) -> int:
    """Return how many bytes follow a frame's head; raises ValueError if they cannot be a frame."""
    (length,) = LENGTH.unpack(head)
    if not 0 < length <= MAX_FRAME_BYTES:
        raise ValueError(f"A frame of {length} bytes cannot be; the limit is {MAX_FRAME_BYTES}.")
    return int(length)


class FrameSplitter:
    """Cuts what a socket brings, in pieces of any size, into frames."""

    def __init__(self) -> None:
        self._received = b""  # the beginning of a frame

    def split(self, received: bytes) -> Iterator[bytes]:
        """Yield the body of each frame that `received` completes; raises ValueError if there is none at its place."""
        received = self._received + received
        start = 0
        while len(received) >= start + LENGTH.size:
            end = start + LENGTH.size + frame_length(received[start : start + LENGTH.size])
            if end > len(received):
                break
            yield received[start + LENGTH.size : end]
            start = end
        self._received = received[start:]
