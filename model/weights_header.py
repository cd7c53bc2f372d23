"""WeightsHeader: what a file of packed weights holds, and for which model, code and processor it was made."""

import hashlib
import os
import stat
import struct
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec

from caravan.model.open_file import ownership_problem

SUFFIX = ".weights"
DATA_ALIGNMENT_BYTES = 4096  # of the first tensor in the file
_MAX_HEADER_BYTES = 64 * 2**20
_MAGIC = b"caravan weights\n"
_PREFIX = struct.Struct("<16sQ32s")  # magic, bytes of the header, its SHA-256


class UnusableWeights(Exception):
    """A file of packed weights cannot be used; the text is the end of a sentence that says why."""


class FileIdentity(msgspec.Struct, frozen=True, array_like=True):
    """What changes whenever a file is written, replaced or exchanged; its path may differ."""

    num_bytes: int
    inode: int
    modified_ns: int
    changed_ns: int  # st_ctime_ns, which no program can set


class WeightsKey(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the bytes of packed weights depend on."""

    files: list[FileIdentity]  # of the model
    tensors: str  # hash of the architecture, and of the names, shapes and types of the tensors
    quantization: str
    dtype: str  # of the other weights
    code: str  # hash of the sources of caravan.model, kernels included
    libraries: dict[str, str]  # versions
    features: dict[str, bool | str]  # of the processor
    share: tuple[int, int] | None = None  # rank and number of ranks, if the outputs are split between them

    @property
    def file_name(self) -> str:
        """The name of the file in the cache."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:32] + SUFFIX


class StoredTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor of the file: a packed part of a linear layer, or another weight."""

    name: str  # of the layer, whose parts stand in their order, or of the weight
    num_bytes: Annotated[int, msgspec.Meta(ge=1)]  # the next tensor starts at the next multiple of 64 bytes
    shape: list[int]
    dtype: str
    weight_format: str = ""  # the value of a WeightFormat; empty: not packed
    num_outputs: int = 0  # of a packed part


class WeightsHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The header of a file of packed weights."""

    key: WeightsKey
    model_path: str  # for people, and to remove the file together with its model
    num_data_bytes: int
    tensors: list[StoredTensor]
    samples: str  # SHA-256 of pages of every tensor


def file_identity(path: Path) -> FileIdentity:
    """Return the identity of a file, or of the file that a link leads to; raises OSError."""
    status = path.stat()
    return FileIdentity(status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


def open_weights(path: Path) -> BinaryIO:
    """Return a file of packed weights, open for reading; raises FileNotFoundError, OSError or UnusableWeights.

    It must be a regular file of this user to which nobody else can write.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    problem = ownership_problem(status)
    if not problem and status.st_mode & 0o022:
        problem = f"other users can write to it (mode {stat.S_IMODE(status.st_mode):o})"
    if problem:
        os.close(descriptor)
        raise UnusableWeights(problem)
    return os.fdopen(descriptor, "rb")


def encode_header(header: WeightsHeader) -> bytes:
    """Return the bytes before the data."""
    text = msgspec.json.encode(header)
    prefix = _PREFIX.pack(_MAGIC, len(text), hashlib.sha256(text).digest())
    return (prefix + text).ljust(_data_start(len(text)), b"\0")


def read_header(file: BinaryIO) -> tuple[WeightsHeader, int]:
    """Return the header of an open file, and where its data starts; raises OSError or UnusableWeights.

    The size of the file is checked.
    """
    prefix = file.read(_PREFIX.size)
    magic, num_bytes, digest = _PREFIX.unpack(prefix) if len(prefix) == _PREFIX.size else (b"", 0, b"")
    if magic != _MAGIC or num_bytes > _MAX_HEADER_BYTES:
        raise UnusableWeights("it is not a file of packed weights")
    text = file.read(num_bytes)
    if hashlib.sha256(text).digest() != digest:
        raise UnusableWeights("its header is damaged")
    try:
        header = msgspec.json.decode(text, type=WeightsHeader)
    except msgspec.DecodeError:
        raise UnusableWeights("its header has another form") from None
    start, size = _data_start(num_bytes), os.fstat(file.fileno()).st_size
    if size != start + header.num_data_bytes:
        raise UnusableWeights(f"it has {size:,} bytes; there should be {start + header.num_data_bytes:,}")
    return header, start


def _data_start(num_header_bytes: int) -> int:
    return -(-(_PREFIX.size + num_header_bytes) // DATA_ALIGNMENT_BYTES) * DATA_ALIGNMENT_BYTES
