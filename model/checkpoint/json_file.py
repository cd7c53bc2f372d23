"""JsonFile: a small JSON object in a model's folder, read with typed access."""

import json
import logging
import math
from pathlib import Path
from typing import Any

from caravan.model.checkpoint import BrokenCheckpoint

MAX_JSON_BYTES = 32 * 2**20

logger = logging.getLogger(__name__)


class JsonFile:
    """The fields of one object; a field that is missing without a default, or of another type, is BrokenCheckpoint.

    A field that is null counts as missing.
    """

    def __init__(self, path: Path, fields: dict[str, Any] | None = None) -> None:
        """Read the file, or use `fields`, an object inside it."""
        self.path = path
        self._fields = _read(path) if fields is None else fields

    def __contains__(self, key: str) -> bool:
        return self._fields.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number."""
        value = self._value(key, default)
        if type(value) is not int:
            raise self._wrong(key, value, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number."""
        value = self._value(key, default)
        if type(value) not in (int, float) or not abs(value) < math.inf:
            raise self._wrong(key, value, "a number")
        try:
            return float(value)
        except OverflowError:
            raise self._wrong(key, value, "a number") from None

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def items(self, key: str) -> list[Any]:
        """Return a list; empty if the field is missing."""
        value = self._value(key, [])
        if not isinstance(value, list):
            raise self._wrong(key, value, "a list")
        return value

    def part(self, key: str) -> "JsonFile | None":
        """Return the fields of an object in the file, or None if it is missing."""
        if key not in self:
            return None
        value = self._fields[key]
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return JsonFile(self.path, value)

    def raw(self) -> dict[str, Any]:
        """Return the fields as they are."""
        return self._fields

    def _value(self, key: str, default: Any) -> Any:
        value = self._fields.get(key)
        return default if value is None else value

    def _wrong(self, key: str, value: object, kind: str) -> BrokenCheckpoint:
        shown = "missing" if value is None else f"{ascii(value)[:40]}"
        return BrokenCheckpoint(f"{self.path}: {key} is {shown}; it must be {kind}.")


def _read(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise BrokenCheckpoint(f"{path} is larger than {MAX_JSON_BYTES} bytes, the limit for such files.")
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpoint(f"{path} is not JSON: {ascii(str(error))[1:-1][:120]}.") from None
    if not isinstance(fields, dict):
        raise BrokenCheckpoint(f"{path} does not hold a JSON object.")
    return fields


def log_disagreement(taken: str, value: object, other: str, other_value: object) -> None:
    """Log that two places, named by file and field, state the same fact differently; the first one is used."""
    logger.warning(
        "%s is %s, but %s is %s; the first one is used.", taken, ascii(value)[:80], other, ascii(other_value)[:80]
    )
