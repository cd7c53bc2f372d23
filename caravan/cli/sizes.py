"""Sizes of files, for people to read."""

from pydantic import ByteSize


def readable_size(num_bytes: int) -> str:
    """Return a size in decimal units, such as 98.4MB."""
    return ByteSize(num_bytes).human_readable(decimal=True)
