"""ApiError: everything that can go wrong, as the client sees it."""

import itertools
import json
import logging
import math
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from caravan.server.engine.output_queue import EngineDied, EngineUnavailable
from caravan.server.generation.context import TIMEOUT_HEADER, InvalidTimeout
from caravan.server.generation.errors import (
    GenerationCancelled,
    GenerationError,
    GenerationFailed,
    InvalidGrammar,
    RequestRejected,
)
from caravan.server.sandbox.fair_executor import ExecutorFull
from caravan.server.sandbox.worker_pool import WorkerUnavailable

_RETRY_AFTER_SECONDS = 5
_LONGEST_RETRY_SECONDS = 120  # clients obey no longer one
_MAX_MESSAGE = 400  # characters; keeps every error body under 1 KB

logger = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is not a success. The message has the fact, the limit and the way out, in ASCII."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after = retry_after  # seconds
        self.is_body_unread = status in (408, 413)  # the rest of the request's body: the connection cannot go on

    def body(self) -> dict[str, Any]:
        """Return the JSON object that goes to the client, also inside an event stream."""
        message = _ascii(self.message, _MAX_MESSAGE)
        param = None if self.param is None else _ascii(self.param, 100)
        return {"error": {"message": message, "type": self.kind, "param": param, "code": self.code}}

    def response(self) -> Response:
        """Return the HTTP answer."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if self.is_body_unread:
            headers["connection"] = "close"
        return Response(json.dumps(self.body()), self.status, headers, "application/json")


def invalid(message: str, param: str | None = None) -> ApiError:
    """Return the error for a value the caller can correct."""
    return ApiError(400, message, param=param)


def unavailable(message: str) -> ApiError:
    """Return the error for a time when nothing is answered."""
    return ApiError(503, message, kind="server_error", code="unavailable", retry_after=_RETRY_AFTER_SECONDS)


def overloaded(fact: str, retry_after_seconds: float) -> ApiError:
    """Return the error for a request that there is no room or no time for."""
    seconds = min(max(math.ceil(retry_after_seconds), 1), _LONGEST_RETRY_SECONDS)
    return ApiError(
        429,
        f"The server is overloaded. {fact} Try again in {seconds} s.",
        kind="rate_limit_error",
        code="server_overloaded",
        retry_after=seconds,
    )


def shown(value: object, max_characters: int = 60) -> str:
    """Return the JSON value `value` in ASCII, shortened, for a message about it."""
    # Each part of the encoding has at least one character: no more is encoded than is shown.
    parts = itertools.islice(json.JSONEncoder().iterencode(value), max_characters + 1)
    return _ascii("".join(parts), max_characters)


def as_api_error(error: Exception) -> ApiError:
    """Return what the client is told about `error`; what only the operator should know is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidTimeout):
        return invalid(str(error), TIMEOUT_HEADER)
    if isinstance(error, EngineUnavailable):
        return unavailable("The engine is not ready. Try again shortly.")
    if isinstance(error, EngineDied | GenerationCancelled):
        return unavailable("The engine stopped before the answer was complete. Try again shortly.")
    if isinstance(error, InvalidGrammar):
        # The engine's words are ours: they hold nothing of the grammar or of the text.
        logger.warning("The engine cannot use a request's grammar: %s.", error)
        return invalid(f"`{error.param}` cannot be used: {error}.", error.param)
    if isinstance(error, ExecutorFull | RequestRejected):
        return overloaded(str(error), error.retry_after_seconds)
    if isinstance(error, WorkerUnavailable):
        logger.error("No worker process could answer: %s", error)
        return unavailable(
            "A worker process of the server was lost twice while it worked on this request. Try again shortly."
        )
    if isinstance(error, ClientDisconnect):
        return ApiError(499, "The client closed the connection.")  # for the metrics: nobody reads it
    if isinstance(error, GenerationFailed):
        logger.error("The engine gave up on a request: %s", ascii(str(error)))
    else:
        logger.error("A request failed.", exc_info=error)
    return ApiError(
        500,
        "The server failed to answer this request; the cause is in its log.",
        kind="server_error",
        code="internal_error",
    )


def add_error_handlers(app: FastAPI) -> None:
    """Make every error of `app` look as `ErrorBody`."""

    async def answer(_: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    async def answer_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        messages = {404: "There is no such route.", 405: "This route does not take this method."}
        response = ApiError(error.status_code, messages.get(error.status_code, "The request was refused.")).response()
        response.headers.update(error.headers or {})
        return response

    async def answer_validation(_: Request, __: Exception) -> Response:
        return invalid("A parameter of the path, the query or a header is not valid.").response()

    ours = (ApiError, EngineUnavailable, EngineDied, GenerationError, InvalidTimeout)
    for kind in (*ours, ExecutorFull, WorkerUnavailable, ClientDisconnect):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(RequestValidationError, answer_validation)


def _ascii(text: str, max_characters: int) -> str:
    """Return `text` in printable ASCII, at most `max_characters` long."""
    plain = text.encode("ascii", "backslashreplace").decode()
    plain = "".join(character if character.isprintable() else " " for character in plain)
    return plain if len(plain) <= max_characters else plain[: max_characters - 3] + "..."
