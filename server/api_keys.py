"""API keys: who may ask, and under which names they are known in metrics, logs and the queue."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path

_MAX_NAME = 64  # characters
_LEAST_KEY = 8  # characters


class WrongKeys(ValueError):
    """Keys that cannot be used; the text says which, and never shows a key."""


class ApiKeys:
    """The keys of a server, each with a name. Only digests are kept; names are the configuration's, so few."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        """`keys` maps names to keys; raises WrongKeys."""
        for name, key in keys.items():
            if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
                raise WrongKeys(f"A key's name must have 1 to {_MAX_NAME} printable characters; {name[:80]!r} has not.")
            if len(key) < _LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
                raise WrongKeys(
                    f"The key {name!r} must have at least {_LEAST_KEY} printable ASCII characters and no space."
                )
        self._digests = [(name, _digest(key.encode())) for name, key in keys.items()]
        if len({digest for _, digest in self._digests}) < len(self._digests):
            raise WrongKeys("Two names have the same key; requests could not be told apart.")

    @property
    def names(self) -> list[str]:
        """The names of all keys."""
        return [name for name, _ in self._digests]

    def name_of(self, key: bytes) -> str | None:
        """Return the name of a key, None if it is none; takes no less time for one that is nearly right."""
        digest, found = _digest(key), None
        for name, known in self._digests:
            if hmac.compare_digest(digest, known):
                found = name
        return found


def load_keys(keys: Iterable[str], file: Path | None) -> ApiKeys | None:
    """Return the keys given by themselves, named key-1, key-2 ..., and those of a file; None if there are none.

    A line of the file is `name: key`; empty lines and those that begin with # mean nothing. Raises WrongKeys, OSError.
    """
    named = {f"key-{number}": key for number, key in enumerate(keys, start=1)}
    for number, line in enumerate(file.read_text("utf-8").splitlines() if file else (), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, colon, key = (part.strip() for part in text.partition(":"))
        if not colon:
            raise WrongKeys(f"Line {number} of {file} is not `name: key`.")
        if name in named:
            raise WrongKeys(f"Line {number} of {file} names {name!r} a second time.")
        named[name] = key
    return ApiKeys(named) if named else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
