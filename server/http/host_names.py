"""Allowed host names and origins."""

import re

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[\w.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
ANY = "*"


def allowed_hosts(listed: str | None, bound: str) -> tuple[str, ...] | None:
    """Return the allowed host names, None for any: those listed, else the loopback names if bound to loopback."""
    if listed is not None:
        hosts = tuple(filter(None, map(str.strip, listed.split(","))))
        return None if ANY in hosts else hosts
    return LOOPBACK_NAMES if is_loopback(bound) else None


def allowed_origins(listed: str | None) -> tuple[str, ...]:
    """Return the allowed origins, `*` for any; raises ValueError if one is invalid."""
    origins = tuple(name.lower().removesuffix("/") for part in (listed or "").split(",") if (name := part.strip()))
    for origin in origins:
        if origin != ANY and not _ORIGIN.fullmatch(origin):
            raise ValueError("must be origins such as https://app.example.org, separated by commas, or *")
    return origins


def is_loopback(host: str) -> bool:
    """Return whether an address to listen on is a loopback address."""
    return host in ("localhost", "::1") or host.startswith("127.")
