"""API keys: which keys a server accepts, their names, and what each may do."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

LEAST_PRIORITY = -1000  # of a request; a lower number is served sooner

_MAX_NAME = 64  # characters
_LEAST_KEY = 8  # characters
_MIN_PRIORITY = re.compile(r"min-priority\s*=\s*(-?[0-9]{1,4})")


class WrongKeys(ValueError):
    """Keys that cannot be used; the text says which, and never shows a key."""


@dataclass(frozen=True)
class KeyAttributes:
    """What a key may do beside sending requests."""

    may_scrape: bool = False  # read /metrics, once any key has this mark
    min_priority: int = 0  # the lowest `priority` that moves its requests before those of other keys


@dataclass(frozen=True)
class ApiKey:
    """A key with its name. Only the digest is kept."""

    name: str
    digest: bytes
    may_scrape: bool = False
    min_priority: int = 0


class ApiKeys:
    """The keys of a server. Names come from the configuration, so there are few."""

    def __init__(self, keys: Mapping[str, str], attributes: Mapping[str, KeyAttributes] | None = None) -> None:
        """`keys` maps names to keys, `attributes` maps names to what differs from the defaults; raises WrongKeys."""
        self._keys: dict[str, ApiKey] = {}
        for name, key in keys.items():
            if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
                raise WrongKeys(f"A key's name must have 1 to {_MAX_NAME} printable characters; {name[:80]!r} has not.")
            if len(key) < _LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key or "," in key:
                raise WrongKeys(
                    f"The key {name!r} must have at least {_LEAST_KEY} printable ASCII characters, "
                    "no space and no comma."
                )
            marks = (attributes or {}).get(name, KeyAttributes())
            self._keys[name] = ApiKey(name, _digest(key.encode()), marks.may_scrape, marks.min_priority)
        if len({key.digest for key in self._keys.values()}) < len(self._keys):
            raise WrongKeys("Two names have the same key; requests could not be told apart.")
        self._is_scraping_limited = any(key.may_scrape for key in self._keys.values())

    @property
    def names(self) -> list[str]:
        """The names of all keys."""
        return list(self._keys)

    def find(self, key: bytes) -> ApiKey | None:
        """Return the record of a key, None if it is unknown; takes no less time for one that is nearly right."""
        digest, found = _digest(key), None
        for known in self._keys.values():
            if hmac.compare_digest(digest, known.digest):
                found = known
        return found

    def name_of(self, key: bytes) -> str | None:
        """Return the name of a key, None if it is unknown."""
        found = self.find(key)
        return None if found is None else found.name

    def named(self, name: str) -> ApiKey | None:
        """Return the record of the key with this name, None if there is none."""
        return self._keys.get(name)

    def can_scrape(self, key: ApiKey) -> bool:
        """Return whether a key may read /metrics: each one may, unless some are marked for it."""
        return key.may_scrape or not self._is_scraping_limited


def load_keys(keys: Iterable[str], file: Path | None) -> ApiKeys | None:
    """Return the keys given by themselves, named key-1, key-2 ..., and those of a file; None if there are none.

    A line of the file is `name: key`, or `name: key, scrape, min-priority=-5` with any of these attributes; empty lines
    and those that begin with # are skipped. Raises WrongKeys, OSError.
    """
    named = {f"key-{number}": key for number, key in enumerate(keys, start=1)}
    attributes: dict[str, KeyAttributes] = {}
    for number, line in enumerate(file.read_text("utf-8").splitlines() if file else (), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, colon, rest = (part.strip() for part in text.partition(":"))
        if not colon:
            raise WrongKeys(f"Line {number} of {file} is not `name: key`.")
        if name in named:
            raise WrongKeys(f"Line {number} of {file} names {name!r} a second time.")
        named[name], *marks = (part.strip() for part in rest.split(","))
        attributes[name] = _attributes(marks, f"Line {number} of {file}")
    return ApiKeys(named, attributes) if named else None


def _attributes(marks: list[str], place: str) -> KeyAttributes:
    """Return the attributes after a key; raises WrongKeys, which does not show them: one may be part of a key."""
    may_scrape, min_priority = False, 0
    for mark in marks:
        if mark == "scrape":
            may_scrape = True
        elif (match := _MIN_PRIORITY.fullmatch(mark)) and LEAST_PRIORITY <= int(match[1]) <= 0:
            min_priority = int(match[1])
        else:
            raise WrongKeys(
                f"{place} has an unknown attribute after the key; there are `scrape` and `min-priority=N` "
                f"with N from {LEAST_PRIORITY} to 0."
            )
    return KeyAttributes(may_scrape, min_priority)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
