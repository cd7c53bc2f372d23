"""A small OpenAI-style server with known delays and faults, in a thread."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

MODEL = "fake"
TEMPLATE_TOKENS = 7  # what a chat template adds


@dataclass
class FakeServer:
    """How the server behaves, and what it has been asked."""

    first_token_seconds: float = 0.0
    gap_seconds: float = 0.0
    tokens_per_event: int = 1
    refused_fields: frozenset[str] = frozenset()
    takes_token_ids: bool = True
    faults: list[str] = field(default_factory=list)  # one for each measured request: "", or how it goes wrong
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def measured(self, max_tokens: int) -> list[dict[str, Any]]:
        """Return the requests for this number of tokens, which leaves out those that try the server out."""
        return [body for body in self.bodies if body["max_tokens"] == max_tokens]

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = [line for line in head.splitlines() if line.startswith("Content-Length")]
                body = await reader.readexactly(int(length[0].split(":")[1])) if length else b"{}"
                await self._answer(head.split()[1], json.loads(body), writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if path == "/v1/models":
            return _whole(writer, 200, {"data": [{"id": MODEL}]})
        self.bodies.append(body)
        self.times.append(time.perf_counter())
        if body["model"] != MODEL:
            return _whole(writer, 404, {"error": {"message": f"There is no model {body['model']}."}})
        if refused := self.refused_fields & body.keys():
            return _whole(writer, 400, {"error": {"message": f"`{min(refused)}` is not a field."}})
        if not self.takes_token_ids and isinstance(body.get("prompt"), list):
            return _whole(writer, 400, {"detail": "prompt must be a string"})
        is_chat = "messages" in body
        text = body["messages"][0]["content"] if is_chat else body["prompt"]
        num_prompt = len(text) if isinstance(text, list) else len(text.split()) + TEMPLATE_TOKENS * is_chat
        usage = {"prompt_tokens": num_prompt, "completion_tokens": body["max_tokens"]}
        fault = self.faults.pop(0) if self.faults and body["max_tokens"] > 4 else ""
        if fault == "500":
            return _whole(writer, 500, {"error": {"message": "It broke."}})
        await asyncio.sleep(self.first_token_seconds)
        if not body.get("stream"):
            return _whole(writer, 200, {"choices": [{"text": "x", "finish_reason": "length"}], "usage": usage})
        return await self._stream(body, usage, fault, is_chat, writer)

    async def _stream(
        self, body: dict[str, Any], usage: dict[str, int], fault: str, is_chat: bool, writer: asyncio.StreamWriter
    ) -> None:
        def write(payload: object) -> None:
            event = b"data: " + (payload if isinstance(payload, bytes) else json.dumps(payload).encode()) + b"\n\n"
            for part in (event[:9], event[9:]):  # an event may come in pieces
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))

        def choice(text: str, finish_reason: str | None = None, **delta: str) -> dict[str, Any]:
            content = {"delta": {"content": text, **delta}} if is_chat else {"text": text}
            return {"choices": [{"index": 0, "finish_reason": finish_reason, **content}]}

        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        if is_chat:
            write(choice("", role="assistant"))
        for i in range(0, body["max_tokens"], self.tokens_per_event):
            if i:
                await asyncio.sleep(self.gap_seconds)
            write(choice("w "))
            if fault == "cut":
                raise ConnectionAbortedError
            if fault == "event":
                write({"error": {"message": "The engine ended."}})
        if fault != "endless":
            write(choice("", "length"))
            if body.get("stream_options", {}).get("include_usage"):
                write({"choices": [], "usage": usage})
            write(b"[DONE]")
        writer.write(b"0\r\n\r\n")


def _whole(writer: asyncio.StreamWriter, status: int, content: object) -> None:
    body = json.dumps(content).encode()
    writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))


@contextmanager
def fake_server(**behaviour: Any) -> Iterator[FakeServer]:
    """Run a fake server on a free port until the end."""
    fake = FakeServer(**behaviour)
    started, loop = threading.Event(), asyncio.new_event_loop()

    async def start() -> asyncio.Server:
        server = await asyncio.start_server(fake.connected, "127.0.0.1", 0)
        fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def stop(server: asyncio.Server) -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.01)  # in which transports close

    def run() -> None:
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(start())
        loop.call_soon(started.set)  # not before it runs for ever: an earlier stop would be forgotten
        loop.run_forever()
        loop.run_until_complete(stop(server))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
