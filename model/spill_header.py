"""SpillKey and SpillHeader: what the blocks in a spill file depend on, and the beginning of such a file."""

import hashlib
import os
import struct
from typing import Annotated

import msgspec

from caravan.model.weights_header import WeightsKey

SUFFIX = ".blocks"
LAYOUT = 1  # of the file: header, index, slots
PAGE_BYTES = 4096  # header, index and slots begin at multiples of it
_MAX_HEADER_BYTES = 2**24
MAGIC = b"caravan blocks\n\0"
_PREFIX = struct.Struct("<16sQ32s")  # magic, bytes of the header, its SHA-256


class SpillKey(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the bytes of cached blocks depend on, beside the tokens and the salt in their hashes."""

    weights: WeightsKey  # files of the model, quantization, dtype, code and libraries, processor
    backend: str  # classes of the model and of its attention, and the library of kernels
    environment: dict[str, str]  # variables by which PyTorch's libraries choose their code
    kv_dtype: str
    block_size: int
    max_model_len: int  # some scalings of RoPE depend on it
    scheduler: str  # hash of the sources of caravan.scheduler, which names blocks and places tokens in them
    share: str = "1/1"  # of the heads, for engines of several ranks
    layout: int = LAYOUT


class SpillHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The header of a spill file."""

    key: SpillKey
    model_path: str  # for people, and to remove the file together with its model
    block_bytes: Annotated[int, msgspec.Meta(ge=1)]  # of all layers, keys and values
    num_slots: Annotated[int, msgspec.Meta(ge=1)]

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the key, which is part of every checksum."""
        return hashlib.sha256(msgspec.json.encode(self.key, order="sorted")).digest()


def pages(num_bytes: int) -> int:
    """Return a size rounded up to whole pages."""
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES


def encode_spill_header(header: SpillHeader) -> bytes:
    """Return the bytes before the index, whole pages."""
    text = msgspec.json.encode(header, order="sorted")
    data = _PREFIX.pack(MAGIC, len(text), hashlib.sha256(text).digest()) + text
    return data.ljust(pages(len(data)), b"\0")


def is_empty_or_spill(descriptor: int) -> bool:
    """Return whether an open file is empty, or begins as a spill file, perhaps an unfinished one; raises OSError."""
    return os.pread(descriptor, len(MAGIC), 0) in (b"", MAGIC)


def read_spill_header(descriptor: int) -> SpillHeader | None:
    """Return the header of an open file, None if it has no valid one; raises OSError."""
    prefix = os.pread(descriptor, _PREFIX.size, 0)
    magic, num_bytes, digest = _PREFIX.unpack(prefix) if len(prefix) == _PREFIX.size else (b"", 0, b"")
    if magic != MAGIC or num_bytes > _MAX_HEADER_BYTES:
        return None
    text = os.pread(descriptor, num_bytes, _PREFIX.size)
    if hashlib.sha256(text).digest() != digest:
        return None
    try:
        return msgspec.json.decode(text, type=SpillHeader)
    except msgspec.DecodeError:  # of another version
        return None
