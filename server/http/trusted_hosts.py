"""TrustedHosts: which names the server answers to.

A page on another site can make a browser send requests to this machine under a name of its own (DNS rebinding). On
loopback only the names of this machine are answered to, unless others are allowed.
"""

import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from caravan.server.http.errors import ApiError

_HOST = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::[0-9]*)?")


class TrustedHosts:
    """ASGI middleware that answers to some names only."""

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str]) -> None:
        """`hosts` are names without a port; one that begins with `*.` stands for all names below it."""
        self._app = app
        self._names = frozenset(host.lower() for host in hosts)
        self._suffixes = tuple(name.removeprefix("*") for name in self._names if name.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_ours(_host(scope)):
            message = "The server does not answer to this host name; --allowed-hosts names those it answers to."
            await ApiError(421, message, param="host").response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        return host in self._names or (bool(self._suffixes) and host.endswith(self._suffixes))


def _host(scope: Scope) -> str:
    """Return the name in the Host header without its port; empty if there is not exactly one that can be a name."""
    values = [value for name, value in scope["headers"] if name == b"host"]
    match = _HOST.fullmatch(values[0]) if len(values) == 1 else None
    return match[1].decode("ascii").lower() if match else ""
