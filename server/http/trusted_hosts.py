"""TrustedHosts: reject requests for other host names.

A page on another site can make a browser send requests to this machine under the site's host name (DNS rebinding). A
server on loopback only accepts the loopback names, unless others are allowed.
"""

import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from caravan.server.http.errors import ApiError

_HOST = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::[0-9]*)?")


class TrustedHosts:
    """ASGI middleware that accepts only the given host names."""

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str]) -> None:
        """`hosts` are names without a port; `*.example.org` matches all subdomains."""
        self._app = app
        self._names = frozenset(host.lower() for host in hosts)
        self._suffixes = tuple(name.removeprefix("*") for name in self._names if name.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_trusted(_host(scope)):
            message = "This host name is not allowed; add it with --allowed-hosts."
            await ApiError(421, message, param="host").response(scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_trusted(self, host: str) -> bool:
        return host in self._names or (bool(self._suffixes) and host.endswith(self._suffixes))


def _host(scope: Scope) -> str:
    """Return the name in the Host header without its port; empty unless there is exactly one valid header."""
    values = [value for name, value in scope["headers"] if name == b"host"]
    match = _HOST.fullmatch(values[0]) if len(values) == 1 else None
    return match[1].decode("ascii").lower() if match else ""
