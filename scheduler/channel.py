"""Frames: messages as bytes on the socket.

A frame is its length as four bytes, little-endian, then one msgpack object tagged with its type.
"""

import struct
from collections.abc import Iterator
from typing import TypeVar

import msgspec

LENGTH = struct.Struct("<I")
MAX_FRAME_BYTES = 256 * 1024 * 1024  # far above any real frame; a larger length is an error

MessageT = TypeVar("MessageT")


def encode_frame(message: msgspec.Struct) -> bytes:
    """Return the frame of a message."""
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


def frame_length(head: bytes) -> int:
    """Return the length of the body after a frame's head; raises ValueError if it is out of range."""
    (length,) = LENGTH.unpack(head)
    if not 0 < length <= MAX_FRAME_BYTES:
        raise ValueError(f"A frame cannot have {length} bytes; it must have 1 to {MAX_FRAME_BYTES}.")
    return int(length)


class FrameSplitter:
    """Splits the bytes received from a socket, in pieces of any size, into frames."""

    def __init__(self) -> None:
        self._received = b""  # the beginning of a frame

    def split(self, received: bytes) -> Iterator[bytes]:
        """Yield the body of each frame that `received` completes; raises ValueError for an impossible length."""
        received = self._received + received
        start = 0
        while len(received) >= start + LENGTH.size:
            end = start + LENGTH.size + frame_length(received[start : start + LENGTH.size])
            if end > len(received):
                break
            yield received[start + LENGTH.size : end]
            start = end
        self._received = received[start:]
