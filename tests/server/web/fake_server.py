"""A server for tests of the page: the real files, and an API that answers as the test says."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from caravan.server.operations.page import page_router
from caravan.server.operations.source_code import source_code_router

CONTEXT = 512  # tokens of the fake model


@dataclass
class Answer:
    """How the server answers one chat request."""

    texts: list[str] = field(default_factory=list)  # one token each
    thoughts: list[str] = field(default_factory=list)
    finish_reason: str = "stop"
    status: int = 200
    error: dict[str, Any] | None = None  # the body's error, or with status 200 an event after the texts
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # between two tokens
    hold: threading.Event | None = None  # waited for before the first token
    then: threading.Event | None = None  # waited for after the last one
    is_cut: bool = False  # the connection ends after the texts


def says(text: str, **fields: Any) -> Answer:
    """Return an answer with each word as a token."""
    words = text.split(" ")
    return Answer([f"{word} " for word in words[:-1]] + words[-1:], **fields)


@dataclass
class FakeServer:
    """What the server is like; tests change it while it runs."""

    url: str = ""
    is_ready: bool = True
    key: str = ""  # the one that is accepted, "" for none
    models: list[str] = field(default_factory=lambda: ["tiny"])
    answers: list[Answer] = field(default_factory=list)  # of the next requests; says("Hello there.") after the last
    bodies: list[dict[str, Any]] = field(default_factory=list)  # of the chat requests
    timeline: list[dict[str, Any]] = field(default_factory=list)  # of every request

    def error(self, status: int, message: str, **more: Any) -> Response:
        detail = {"message": message, "type": "error", "param": None, "code": None} | more
        return JSONResponse({"error": detail}, status)


def fake_app(fake: FakeServer) -> FastAPI:
    """Return the application."""
    app = FastAPI()
    app.include_router(source_code_router())
    app.include_router(page_router())

    @app.middleware("http")
    async def check_key(request: Request, call_next: Any) -> Any:
        path = request.url.path
        is_open = path in ("/", "/docs", "/readyz") or path.startswith("/web/")
        if fake.key and not is_open and request.headers.get("authorization") != f"Bearer {fake.key}":
            return fake.error(401, "The API key is missing or invalid.", code="invalid_api_key")
        return await call_next(request)

    @app.get("/readyz")
    async def readyz() -> Response:
        return JSONResponse({"status": "ready"}) if fake.is_ready else fake.error(503, "The engine is not ready.")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"data": [{"id": name, "max_model_len": CONTEXT, "state": "loaded"} for name in fake.models]}

    @app.post("/api/show")
    async def show() -> dict[str, Any]:
        parameters = "temperature 0.2\ntop_p 0.9\ntop_k 0\nmin_p 0"
        return {
            "details": {"quantization_level": "int4: stored in 4 bits", "parameter_size": "135M"},
            "parameters": parameters,
        }

    @app.post("/tokenize")
    async def tokenize(request: Request) -> dict[str, Any]:
        messages = (await request.json())["messages"]
        return {"count": sum(len(one["content"].split()) for one in messages), "max_model_len": CONTEXT}

    @app.get("/v1/requests/{name}/explain")
    async def explain(name: str) -> Response:
        if not fake.timeline:
            return fake.error(404, "There is no such request.")
        return JSONResponse(_explanation(name, fake.timeline))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        fake.bodies.append(await request.json())
        answer = fake.answers.pop(0) if fake.answers else says("Hello there.")
        if answer.status != 200:
            assert answer.error is not None
            response = fake.error(answer.status, **answer.error)
            response.headers.update(answer.headers)
            return response
        return StreamingResponse(_events(fake, answer), media_type="text/event-stream")

    return app


async def _events(fake: FakeServer, answer: Answer) -> AsyncIterator[str]:
    yield ": hello\n\n"
    while answer.hold is not None and not answer.hold.is_set():
        await asyncio.sleep(0.02)
    pieces = [("reasoning_content", text) for text in answer.thoughts] + [("content", text) for text in answer.texts]
    for name, text in pieces:
        top = [{"token": text, "logprob": -0.2}, {"token": "other", "logprob": -2.0}]
        logprobs = {"content": [{"token": text, "logprob": -0.2, "top_logprobs": top}]} if name == "content" else None
        yield _event({"choices": [{"index": 0, "delta": {name: text}, "logprobs": logprobs, "finish_reason": None}]})
        if answer.seconds:
            await asyncio.sleep(answer.seconds)
    while answer.then is not None and not answer.then.is_set():
        await asyncio.sleep(0.02)
    if answer.is_cut:
        raise ConnectionError("The connection is cut on purpose.")
    if answer.error is not None:
        yield _event({"error": answer.error})
    else:
        yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": answer.finish_reason}]})
        tokens = len(pieces)
        usage = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}
        yield _event({"choices": [], "usage": usage})
        if fake.timeline:
            yield _event({"choices": [], "explanation": _explanation("", fake.timeline)})
    yield "data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


def _explanation(name: str, timeline: list[dict[str, Any]]) -> dict[str, Any]:
    choice = {"tokens": 3, "steps": 3, "mean_batch": 1.5, "largest_batch": 2}
    return {"request_id": name, "timeline": timeline, "choices": [choice], "left_out": 0}


@contextmanager
def fake_server(port: int = 0) -> Iterator[FakeServer]:
    """Run it in a thread; 0 is any free port."""
    fake = FakeServer()
    config = uvicorn.Config(fake_app(fake), port=port, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    fake.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join()
