"""API keys: the keys that a server accepts, their names and their permissions."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

LEAST_PRIORITY = -1000  # of a request; lower values are scheduled first

_MAX_NAME = 64  # characters
_LEAST_KEY = 8  # characters
_MIN_PRIORITY = re.compile(r"min-priority\s*=\s*(-?[0-9]{1,4})")


class WrongKeys(ValueError):
    """The configured keys are invalid; the text names the entry, never a key."""


@dataclass(frozen=True)
class KeyAttributes:
    """The permissions of a key beyond sending requests."""

    may_scrape: bool = False  # may read /metrics, once any key has this attribute
    min_priority: int = 0  # the lowest `priority` that is effective across keys
    may_load: bool = False  # may load and unload adapters


@dataclass(frozen=True, kw_only=True)
class ApiKey(KeyAttributes):
    """A key with its name and its permissions. Only the digest is stored."""

    name: str
    digest: bytes


class ApiKeys:
    """The keys of a server, which can change while it runs: `names` and `digests` follow."""

    def __init__(self, keys: Mapping[str, str], attributes: Mapping[str, KeyAttributes] | None = None) -> None:
        """`keys` maps names to keys, `attributes` names to non-default attributes; raises WrongKeys."""
        self._keys: dict[str, ApiKey] = {}
        self.names: Set[str] = self._keys.keys()
        self.digests: dict[str, str] = {}  # in hexadecimal, by name
        for name, key in keys.items():
            if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
                raise WrongKeys(f"A key name must have 1 to {_MAX_NAME} printable characters; {name[:80]!r} does not.")
            if len(key) < _LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key or "," in key:
                raise WrongKeys(
                    f"The key {name!r} must have at least {_LEAST_KEY} printable ASCII characters, "
                    "no space and no comma."
                )
            own = (attributes or {}).get(name, KeyAttributes())
            self._keys[name] = ApiKey(name=name, digest=_digest(key.encode()), **vars(own))
        if len({key.digest for key in self._keys.values()}) < len(self._keys):
            raise WrongKeys("Two names have the same key; each name must have its own key.")
        self._derive()

    def replace(self, keys: "ApiKeys") -> None:
        """Accept other keys from now on.

        Raises WrongKeys if they no longer limit who may read /metrics: it has counts that only an operator may see.
        """
        if self.is_scraping_limited and not keys.is_scraping_limited:
            raise WrongKeys("No key has `scrape` any more, which needs a restart.")
        self._keys.clear()
        self._keys.update(keys._keys)
        self._derive()

    def _derive(self) -> None:
        self.digests.clear()
        self.digests.update({name: key.digest.hex() for name, key in self._keys.items()})
        self.is_scraping_limited = any(key.may_scrape for key in self._keys.values())
        self.can_any_load = any(key.may_load for key in self._keys.values())

    def find(self, key: bytes) -> ApiKey | None:
        """Return the record of a key, None if it is unknown; compares in constant time."""
        digest, found = _digest(key), None
        for known in self._keys.values():
            if hmac.compare_digest(digest, known.digest):
                found = known
        return found

    def can_scrape(self, key: ApiKey) -> bool:
        """Return whether a key may read /metrics: all may, unless some keys have the attribute `scrape`."""
        return key.may_scrape or not self.is_scraping_limited


def load_keys(keys: Iterable[str], file: Path | None) -> ApiKeys | None:
    """Return `keys`, named key-1, key-2 ..., and the keys of `file`; None if there are none.

    A line of the file is `name: key` or, with any of the attributes, `name: key, scrape, adapters, min-priority=-5`.
    Empty lines and lines that begin with # are ignored. Raises WrongKeys, OSError.
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
            raise WrongKeys(f"Line {number} of {file} repeats the name {name!r}.")
        named[name], *marks = (part.strip() for part in rest.split(","))
        attributes[name] = _attributes(marks, f"Line {number} of {file}")
    return ApiKeys(named, attributes) if named else None


def _attributes(marks: list[str], place: str) -> KeyAttributes:
    """Return the attributes after a key; raises WrongKeys without quoting them: one may be part of a key."""
    may_scrape, min_priority, may_load = False, 0, False
    for mark in marks:
        if mark == "scrape":
            may_scrape = True
        elif mark == "adapters":
            may_load = True
        elif (match := _MIN_PRIORITY.fullmatch(mark)) and LEAST_PRIORITY <= int(match[1]) <= 0:
            min_priority = int(match[1])
        else:
            raise WrongKeys(
                f"{place} has an unknown attribute after the key; use `scrape`, `adapters` or `min-priority=N` "
                f"with N from {LEAST_PRIORITY} to 0."
            )
    return KeyAttributes(may_scrape, min_priority, may_load)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
