"""GgufHeader: the metadata and tensor directory of a GGUF file, read in one bounded pass.

The file may be damaged or hostile, so every count is compared with the remaining bytes before it is used, and no memory
is allocated for missing data. Source of the layout: ggml's docs/gguf.md, versions 2 and 3.
"""

import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from caravan.model.checkpoint import BrokenCheckpoint

MAX_HEADER_BYTES = 64 * 2**20  # a vocabulary of 262,144 tokens takes about 15 MiB
MAX_ITEMS = 2**22  # in one array
MAX_ENTRIES = 2**16  # metadata fields, and tensors
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32

_LENGTH = struct.Struct("<Q")  # of a string, before it
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS: Mapping[int, str] = {  # value type -> format of struct and array
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """The place of a tensor; `shape` has the order of torch, with the last dimension contiguous."""

    shape: tuple[int, ...]
    type_number: int  # of ggml
    start: int  # bytes from the beginning of the file


@dataclass(frozen=True)
class GgufHeader:
    """Metadata and tensor directory of one file."""

    path: Path
    num_file_bytes: int
    metadata: Mapping[str, object]
    tensors: Mapping[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Return the header of a GGUF file; raises OSError or BrokenCheckpoint."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BrokenCheckpoint(f"{path} is not a GGUF file: it does not begin with the letters GGUF.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(path, content).header()


class _Reader:
    """A cursor over the file's bytes; every step checks that the bytes are there."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path = path
        self._content = content
        self._num_bytes = len(content)
        self._end = min(len(content), MAX_HEADER_BYTES)
        self._at = 4  # after the magic

    def header(self) -> GgufHeader:
        version = self._number("I")
        if version not in (2, 3):
            raise self._broken(f"it has version {version}; supported are 2 and 3, little-endian")
        num_tensors = self._count(MAX_ENTRIES, "tensors", 24)
        num_fields = self._count(MAX_ENTRIES, "metadata fields", 13)
        metadata: dict[str, object] = {}
        for _ in range(num_fields):
            key = self._string()
            if key in metadata:
                raise self._broken(f"it has the field {ascii(key)[:80]} twice")
            metadata[key] = self._value(self._number("I"))
        tensors: dict[str, GgufTensor] = {}
        for _ in range(num_tensors):
            name = self._string()
            if name in tensors:
                raise self._broken(f"it has the tensor {ascii(name)[:80]} twice")
            tensors[name] = self._tensor()
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._broken(f"its alignment is {ascii(alignment)[:24]}; it must be a power of two")
        data_start = -(-self._at // alignment) * alignment
        return GgufHeader(
            path=self._path,
            num_file_bytes=self._num_bytes,
            metadata=metadata,
            tensors={
                name: GgufTensor(tensor.shape, tensor.type_number, data_start + tensor.start)
                for name, tensor in tensors.items()
            },
        )

    def _tensor(self) -> GgufTensor:
        num_dimensions = self._number("I")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise self._broken(f"a tensor has {num_dimensions} dimensions; there can be 1 to {MAX_DIMENSIONS}")
        fastest_first = [self._number("Q") for _ in range(num_dimensions)]
        return GgufTensor(tuple(fastest_first[::-1]), self._number("I"), self._number("Q"))

    def _value(self, value_type: int) -> object:
        if value_type == _STRING:
            return self._string()
        if value_type == _ARRAY:
            return self._array()
        if value_type == _BOOL:
            return self._number("B") != 0
        if value_type in _NUMBERS:
            number: int | float
            (number,) = struct.unpack(f"<{_NUMBERS[value_type]}", self._take(struct.calcsize(_NUMBERS[value_type])))
            return number
        raise self._broken(f"a field has the value type {value_type}, which does not exist")

    def _array(self) -> Sequence[object]:
        item_type = self._number("I")
        if item_type == _STRING:
            return self._strings(self._count(MAX_ITEMS, "items", 8))
        if item_type not in _NUMBERS:
            raise self._broken(f"an array has items of type {item_type}; supported are numbers and strings")
        code = _NUMBERS[item_type]
        num_items = self._count(MAX_ITEMS, "items", struct.calcsize(f"<{code}"))
        return list(struct.unpack(f"<{num_items}{code}", self._take(num_items * struct.calcsize(f"<{code}"))))

    def _string(self) -> str:
        (string,) = self._strings(1)
        return string

    def _strings(self, count: int) -> list[str]:
        """Return `count` strings, without a call for each: a vocabulary has a hundred thousand."""
        strings = []
        content, end, at, length_at = self._content, self._end, self._at, _LENGTH.unpack_from
        try:
            for _ in range(count):
                start = at + _LENGTH.size
                (length,) = length_at(content, at) if start <= end else (end,)
                at = start + length
                if at > end:
                    self._at = min(start, end)
                    raise self._broken(f"the header is cut off at byte {self._at}")
                strings.append(content[start:at].decode())
        except UnicodeDecodeError:
            raise self._broken(f"the text at byte {start} is not UTF-8") from None
        self._at = at
        return strings

    def _count(self, limit: int, what: str, least_bytes: int) -> int:
        count = self._number("Q")
        if count > limit or count * least_bytes > self._end - self._at:
            raise self._broken(f"it states {count} {what} at byte {self._at - 8}, more than fit into the file")
        return count

    def _number(self, code: str) -> int:
        (number,) = struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))
        return int(number)

    def _take(self, num_bytes: int) -> bytes:
        if num_bytes > self._end - self._at:
            raise self._broken(f"the header is cut off at byte {self._at}")
        self._at += num_bytes
        return self._content[self._at - num_bytes : self._at]

    def _broken(self, fact: str) -> BrokenCheckpoint:
        return BrokenCheckpoint(f"{self._path} is not a valid GGUF file: {fact}. Fetch or convert it again.")
