"""ApiError: the errors of the API, and the mapping of exceptions to them."""

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
from starlette.routing import Match
from starlette.types import Scope

from caravan.server.engine.output_queue import AdapterUnloaded, EngineDied, EngineUnavailable, ModelLoadFailed
from caravan.server.generation.context import SCOPE_REQUEST_ID, TIMEOUT_HEADER, InvalidTimeout
from caravan.server.generation.errors import (
    GenerationCancelled,
    GenerationError,
    GenerationFailed,
    InvalidGrammar,
    RequestCancelled,
    RequestRejected,
)
from caravan.server.http.error_form import SCOPE_FORM, ErrorForm
from caravan.server.sandbox.fair_executor import ExecutorFull
from caravan.server.sandbox.worker_pool import WorkerUnavailable

_RETRY_AFTER_SECONDS = 5
_MAX_RETRY_SECONDS = 120  # clients ignore longer ones
_MAX_MESSAGE = 400  # characters; keeps every error body under 1 KB
_MAX_SHOWN = 60  # characters of a value in a message
_METHODS = ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")  # RFC 9110 and RFC 5789

DISCONNECTED = 499  # a status that only logs and metrics see
RESPONSE_ENDED = "response_ended"  # the code of a response that another request has ended

logger = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    """An error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


class ApiError(Exception):
    """An error response. The message states the fact, the limit and the way out, in ASCII."""

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
        self.is_body_unread = status in (408, 413)  # the request body is not read to its end: close the connection
        self.details: dict[str, Any] = {}  # for the forms of errors that have them

    def body(self) -> dict[str, Any]:
        """Return the JSON object of the response or of an event."""
        message = _ascii(self.message, _MAX_MESSAGE)
        param = None if self.param is None else _ascii(self.param, 100)
        return {"error": {"message": message, "type": self.kind, "param": param, "code": self.code}}

    def response(self, scope: Scope | None = None) -> Response:
        """Return the HTTP response, in the form of the API that the request with this scope belongs to."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if self.is_body_unread:
            headers["connection"] = "close"
        form: ErrorForm | None = None if scope is None else scope.get(SCOPE_FORM)
        body = self.body() if scope is None or form is None else form.body(self, scope[SCOPE_REQUEST_ID])
        return Response(json.dumps(body), self.status, headers, "application/json")


def invalid(message: str, param: str | None = None) -> ApiError:
    """Return the error for an invalid value in a request."""
    return ApiError(400, message, param=param)


def unavailable(message: str) -> ApiError:
    """Return the error for a server that cannot handle requests now."""
    return ApiError(503, message, kind="server_error", code="unavailable", retry_after=_RETRY_AFTER_SECONDS)


def overloaded(fact: str, retry_after_seconds: float) -> ApiError:
    """Return the error for a request that would exceed a limit of the server."""
    seconds = min(max(math.ceil(retry_after_seconds), 1), _MAX_RETRY_SECONDS)
    return ApiError(
        429,
        f"The server is overloaded. {fact} Try again in {seconds} s.",
        kind="rate_limit_error",
        code="server_overloaded",
        retry_after=seconds,
    )


def shown(value: object) -> str:
    """Return the JSON value `value` in ASCII, shortened, for a message about it."""
    # Each part has at least one character, so no more is encoded than is shown.
    parts = itertools.islice(json.JSONEncoder().iterencode(value), _MAX_SHOWN + 1)
    return _ascii("".join(parts), _MAX_SHOWN)


def as_api_error(error: Exception) -> ApiError:
    """Return the error response for `error`; details for the operator are logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidTimeout):
        return invalid(str(error), TIMEOUT_HEADER)
    if isinstance(error, EngineUnavailable):
        return unavailable("The engine is not ready. Try again later.")
    if isinstance(error, AdapterUnloaded):
        return ApiError(404, f"The adapter {error} was unloaded.", param="model", code="model_not_found")
    if isinstance(error, ModelLoadFailed):
        return unavailable(str(error))
    if isinstance(error, EngineDied | GenerationCancelled):
        return unavailable("The engine stopped before the response was complete. Try again later.")
    if isinstance(error, InvalidGrammar):
        # The engine's message quotes neither the grammar nor the text.
        logger.warning("The engine cannot use a request's grammar: %s.", error)
        return invalid(f"`{error.param}` cannot be used: {error}.", error.param)
    if isinstance(error, ExecutorFull | RequestRejected):
        return overloaded(str(error), error.retry_after_seconds)
    if isinstance(error, WorkerUnavailable):
        logger.error("Two worker processes in a row were lost: %s", error)
        return unavailable(
            "Two worker processes of the server were lost while they handled this request. Try again later."
        )
    if isinstance(error, RequestCancelled):
        return ApiError(410, str(error), code=RESPONSE_ENDED)
    if isinstance(error, ClientDisconnect):
        return ApiError(DISCONNECTED, "The client closed the connection.")
    if isinstance(error, GenerationFailed):
        logger.error("The engine failed on a request: %s", ascii(str(error)))
    else:
        logger.error("A request failed.", exc_info=error)
    return ApiError(
        500,
        "The server failed to handle this request; the cause is in its log.",
        kind="server_error",
        code="internal_error",
    )


def add_error_handlers(app: FastAPI) -> None:
    """Make every error response of `app` an `ErrorBody`."""

    async def respond(request: Request, error: Exception) -> Response:
        return as_api_error(error).response(request.scope)

    async def respond_to_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        messages = {404: "There is no such route.", 405: "This route does not support this method."}
        answer = ApiError(error.status_code, messages.get(error.status_code, "The request was rejected."))
        response = answer.response(request.scope)
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            response.headers["allow"] = ", ".join(_allowed_methods(app, request))
        return response

    async def respond_to_validation_error(request: Request, _: Exception) -> Response:
        error = invalid("A parameter of the path, the query or a header is not valid.")
        return error.response(request.scope)

    ours = (ApiError, EngineUnavailable, AdapterUnloaded, EngineDied, ModelLoadFailed, GenerationError, InvalidTimeout)
    for kind in (*ours, ExecutorFull, WorkerUnavailable, ClientDisconnect):
        app.add_exception_handler(kind, respond)
    app.add_exception_handler(HTTPException, respond_to_http_error)
    app.add_exception_handler(RequestValidationError, respond_to_validation_error)


def _allowed_methods(app: FastAPI, request: Request) -> list[str]:
    """Return the methods for which a route has the path of a request; the error names only those of the first one."""
    return [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in app.routes)
    ]


def _ascii(text: str, max_characters: int) -> str:
    """Return `text` in printable ASCII, at most `max_characters` long."""
    plain = text.encode("ascii", "backslashreplace").decode()
    plain = "".join(character if character.isprintable() else " " for character in plain)
    return plain if len(plain) <= max_characters else plain[: max_characters - 3] + "..."
