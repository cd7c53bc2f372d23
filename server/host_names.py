"""Names and addresses of the machine itself."""

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
ANY = "*"


def allowed_hosts(listed: str | None, bound: str) -> tuple[str, ...] | None:
    """Return the names to answer to, None for any: what is listed, else those of this machine if bound to loopback."""
    if listed is not None:
        hosts = tuple(filter(None, map(str.strip, listed.split(","))))
        return None if ANY in hosts else hosts
    return LOOPBACK_NAMES if is_loopback(bound) else None


def is_loopback(host: str) -> bool:
    """Return whether an address to listen on can be reached from this machine only."""
    return host in ("localhost", "::1") or host.startswith("127.")
