"""AsgiRequest: an HTTP request to the application, message by message, for clients that disconnect or do not read."""

import asyncio
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from starlette.types import ASGIApp, Message


class AsgiRequest:
    """A POST of `body`, or a GET without one, whose client can disconnect or stop reading at any time."""

    def __init__(
        self,
        app: ASGIApp,
        path: str,
        body: dict[str, Any] | None,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        query: str = "",
        sends_body: bool = True,
    ) -> None:
        """`headers` are sent beside the content type. Without `sends_body` the body waits for `send_body`."""
        self.sent: list[Message] = []
        self.reads = asyncio.Event()  # cleared: the client does not read
        self.reads.set()
        self._from_client: asyncio.Queue[Message] = asyncio.Queue()
        self._body = json.dumps(body).encode() if body else b""
        if sends_body:
            self.send_body()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST" if body else "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [
                (b"content-type", b"application/json"),
                *((name.encode(), value.encode()) for name, value in headers.items()),
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        self._task = asyncio.ensure_future(app(scope, self._from_client.get, self._send))

    @property
    def status(self) -> int | None:
        """The status, if the response has begun."""
        starts = [message["status"] for message in self.sent if message["type"] == "http.response.start"]
        return starts[0] if starts else None

    @property
    def body(self) -> str:
        """What the client has read so far."""
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    @property
    def is_complete(self) -> bool:
        """Whether the response is complete."""
        return bool(self.sent) and not self.sent[-1].get("more_body", True)

    def send_body(self) -> None:
        """Send the whole body."""
        self._from_client.put_nowait({"type": "http.request", "body": self._body})

    def leave(self) -> None:
        """Close the connection from the client's side."""
        self._from_client.put_nowait({"type": "http.disconnect"})

    async def end(self) -> None:
        """Wait until the application has handled the request."""
        await asyncio.wait_for(self._task, 60)

    async def _send(self, message: Message) -> None:
        await self.reads.wait()
        self.sent.append(message)
