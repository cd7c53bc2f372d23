"""An application that answers each path in its own way, served by HttpProtocol on a port."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from caravan.server.http.protocol import HttpProtocol

REQUEST = b"POST /%s HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"


class Answering:
    """An application that answers each path in its own way and notes what becomes of it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.may_go_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await getattr(self, scope["path"].strip("/"))(receive, send)

    async def echo(self, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        body += message["body"]
        await start(send, (b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.body", "body": body})

    async def early(self, _: Receive, send: Send) -> None:
        await start(send, (b"content-length", b"2"))
        await send({"type": "http.response.body", "body": b"no"})

    async def soon(self, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.001)
        await self.echo(receive, send)

    async def slow(self, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        gone, ready = asyncio.ensure_future(receive()), asyncio.ensure_future(self.may_go_on.wait())
        await asyncio.wait({gone, ready}, return_when=asyncio.FIRST_COMPLETED)
        self.events.append("gone" if gone.done() else "ready")
        gone.cancel()
        ready.cancel()
        if self.events[-1] == "ready":
            await start(send, (b"content-length", b"2"))
            await send({"type": "http.response.body", "body": b"ok"})

    async def endless(self, _: Receive, send: Send) -> None:
        await start(send)
        for number in range(100_000):
            await send({"type": "http.response.body", "body": b"a" * 1000, "more_body": True})
            self.events = [f"sent {number}"]
            await asyncio.sleep(0)
        await send({"type": "http.response.body"})

    async def broken(self, _: Receive, send: Send) -> None:
        await start(send)
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError("in the middle")

    async def wrong(self, _: Receive, __: Send) -> None:
        raise ValueError("before the answer")

    async def long(self, _: Receive, send: Send) -> None:
        await start(send, (b"content-length", b"2"))
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"bc"})

    async def short(self, _: Receive, send: Send) -> None:
        await start(send, (b"content-length", b"2"))
        await send({"type": "http.response.body", "body": b"a"})

    async def splitting(self, _: Receive, send: Send) -> None:
        await start(send, (b"x-a", b"b\r\nx-c: d"))


async def start(send: Send, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers})


@asynccontextmanager
async def served(app: ASGIApp, **options: Any) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    """Serve the application; give the server and its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=HttpProtocol, lifespan="off", log_config=None, **options)
        listener.listen()
        server = uvicorn.Server(config)
        task = asyncio.create_task(server._serve([listener]))
        yield server, listener.getsockname()[1]
        server.should_exit = True
        await task


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    """Return what is received up to the end of the connection."""
    return await asyncio.wait_for(reader.read(), 60)


async def exchange(port: int, data: bytes) -> bytes:
    """Return all that is answered to some bytes, up to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await read_to_end(reader)
    finally:
        writer.close()
