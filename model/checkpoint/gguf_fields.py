"""GgufFields: the metadata of a GGUF file that describe its architecture."""

import math
from collections.abc import Collection

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.gguf_header import GgufHeader
from caravan.model.config import UnsupportedModel


class GgufFields:
    """Typed access to the metadata of the architecture; without a default a field must be there."""

    def __init__(self, header: GgufHeader, supported: Collection[str]) -> None:
        """Read the fields of one of the supported architectures. Raises UnsupportedModel for another one."""
        architecture = header.metadata.get("general.architecture")
        if architecture not in supported:
            raise UnsupportedModel(
                f"{header.path} is a model of kind {ascii(architecture)[:80]}; supported are {', '.join(supported)}."
            )
        self.path = header.path
        self.architecture = str(architecture)
        self._prefix = f"{architecture}."
        self._metadata = header.metadata

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number."""
        value = self._metadata.get(self._prefix + key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, value, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number."""
        value = self._metadata.get(self._prefix + key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self._wrong(key, value, "a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._metadata.get(self._prefix + key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """Return a text."""
        value = self._metadata.get(self._prefix + key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def marks(self, key: str, count: int) -> list[bool] | None:
        """Return a list of true and false of that length; None if the field is missing or no list."""
        value = self._metadata.get(self._prefix + key)
        if not isinstance(value, list):
            return None
        if len(value) != count or not all(mark in (0, 1) for mark in value):
            raise self._wrong(key, value, f"a list of {count} times true or false")
        return [bool(mark) for mark in value]

    def broken(self, fact: str) -> BrokenCheckpoint:
        """Return the error of a damaged file; `fact` is without its period."""
        return BrokenCheckpoint(f"{self.path}: {fact}.")

    def unsupported(self, fact: str) -> UnsupportedModel:
        """Return the error of a file that is in order but not supported."""
        return UnsupportedModel(f"{self.path} {fact}.")

    def _wrong(self, key: str, value: object, kind: str) -> BrokenCheckpoint:
        return self.broken(f"{self._prefix}{key} is {ascii(value)[:24]}; it must be {kind}")
