"""LineApp: the generation endpoints for lines of batches, the same code as for HTTP requests."""

import asyncio
import uuid
from collections.abc import Mapping

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Scope

from caravan.server.batches.answer import LineAnswer, Outcome
from caravan.server.engine.output_queue import EngineUnavailable, ModelLoadFailed
from caravan.server.generation.context import NO_KEY, SCOPE_KEY_DIGEST, SCOPE_KEY_NAME, SCOPE_REQUEST_ID, SCOPE_URGENCY
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.body_memory import SCOPE_BODY, BodyMemory
from caravan.server.http.errors import add_error_handlers, as_api_error
from caravan.server.observe.logs import bind_request_id
from caravan.server.openai.chat import chat_router
from caravan.server.openai.completions import completions_router
from caravan.server.openai.embeddings import embeddings_router
from caravan.server.openai.responses import responses_router

LINE_URGENCY = 1  # after all requests of clients that wait
_SCOPE_OUTCOME = "caravan.outcome"  # ASGI scope: the outcome of a line for which there was no engine


class LineApp:
    """An application without a port, authentication and concurrency limit: its caller has these.

    Validation, generation and the bytes of a response are those of an HTTP request.
    """

    def __init__(self, models: ServedModels, bodies: BodyMemory, key_digests: Mapping[str, str]) -> None:
        """`bodies` is the memory of the bodies of all requests. `key_digests` are those of API keys, by name."""
        self._bodies = bodies
        self._key_digests = key_digests
        self._app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        for router in (completions_router, chat_router, responses_router, embeddings_router):
            self._app.include_router(router(models))
        add_error_handlers(self._app)
        for kind in (EngineUnavailable, ModelLoadFailed):
            self._app.add_exception_handler(kind, _respond_without_engine)

    async def answer(self, key_name: str, path: str, body: bytes) -> LineAnswer:
        """Return the response to a POST of a JSON body; a task that is cancelled aborts its generation."""
        request_id = uuid.uuid4().hex
        bind_request_id(request_id)
        reservation = self._bodies.reserve(key_name)
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
            "client": None,
            "server": None,
            SCOPE_KEY_NAME: key_name,
            # A key that is there no more shares cached prefixes with nobody.
            SCOPE_KEY_DIGEST: NO_KEY if key_name == NO_KEY else self._key_digests.get(key_name, request_id),
            SCOPE_REQUEST_ID: request_id,
            SCOPE_URGENCY: LINE_URGENCY,
            SCOPE_BODY: reservation,
        }
        parts = [body]
        status, written = 500, bytearray()

        async def receive() -> Message:
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]  # no client leaves

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                written.extend(message.get("body", b""))

        try:
            await self._app(scope, receive, send)
        except Exception as error:
            response = as_api_error(error).response()
            return LineAnswer(response.status_code, request_id, bytes(response.body))
        finally:
            reservation.release()
        outcomes: dict[int, Outcome] = {429: "not now", 503: "engine ended"}
        outcome = scope.get(_SCOPE_OUTCOME) or outcomes.get(status, "answered")
        return LineAnswer(status, request_id, bytes(written), outcome)


async def _respond_without_engine(request: Request, error: Exception) -> Response:
    can_never_load = isinstance(error, ModelLoadFailed) and error.is_permanent
    request.scope[_SCOPE_OUTCOME] = "answered" if can_never_load else "not now"
    return as_api_error(error).response()
