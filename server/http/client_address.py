"""The client's address: the peer of the connection, or the address from a trusted proxy's header."""

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from starlette.types import Scope

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

UNKNOWN = "-"
_ADDRESS = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?")  # IPv6 with a port has brackets
_MAX_HOPS = 32  # entries of X-Forwarded-For that are read


def networks(listed: str | None) -> tuple[Network, ...]:
    """Parse a list of networks such as `10.0.0.1, 192.168.0.0/16`; raises ValueError."""
    try:
        return tuple(ip_network(part) for name in (listed or "").split(",") if (part := name.strip()))
    except ValueError:
        raise ValueError("must be addresses or networks such as 10.0.0.0/8, separated by commas") from None


def client_address(scope: Scope, trusted: Sequence[Network]) -> str:
    """Return the client's address, `-` if there is none.

    It is the peer or, if the peer is in a trusted network, the last address in X-Forwarded-For that is not in one:
    clients can forge the entries before it. If that entry is not an address, the header is ignored.
    """
    peer = (scope.get("client") or (UNKNOWN,))[0]
    if not trusted:
        return str(peer)
    address = _parsed(str(peer))
    if address is None or not _is_in(address, trusted):
        return str(peer)
    header = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
    for hop in _hops(header):
        named = _parsed(hop)
        if named is None:
            return str(peer)
        address = named
        if not _is_in(named, trusted):
            break
    return str(address)


def _hops(header: bytes) -> list[str]:
    """Return the last entries of X-Forwarded-For, in reverse order."""
    entries = header.decode("latin-1").rsplit(",", _MAX_HOPS)
    return [entry.strip() for entry in reversed(entries[-_MAX_HOPS:])] if header else []


def _parsed(text: str) -> Address | None:
    """Parse an address with or without a port; None if it is invalid."""
    match = _ADDRESS.fullmatch(text)
    try:
        address = ip_address((match[1] or match[2]) if match else text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        # A zone such as %eth0 may be any text, and is only meaningful on the machine that wrote it.
        return None if address.scope_id else address.ipv4_mapped or address
    return address


def _is_in(address: Address, trusted: Iterable[Network]) -> bool:
    return any(address in network for network in trusted)
