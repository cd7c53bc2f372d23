"""The errors of Anthropic's API."""

from typing import Any

from caravan.server.http.error_form import ErrorForm
from caravan.server.http.errors import ApiError

MESSAGES_PATH = "/v1/messages"
VERSION_HEADER = "anthropic-version"  # which all clients of the API send
_KINDS = {  # by status; others are invalid_request_error below 500, else api_error
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_error(error: ApiError, request_id: str) -> dict[str, Any]:
    """Return the JSON object of an error response, or of an event."""
    detail = error.body()["error"]
    kind = _KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    body = {"type": kind, "message": detail["message"]}
    return {"type": "error", "error": body | error.details, "request_id": request_id}


ANTHROPIC = ErrorForm(
    body=anthropic_error,
    paths=(f"{MESSAGES_PATH}/",),
    shared_paths=("/v1/models/",),
    header=VERSION_HEADER.encode(),
    id_header=b"request-id",
)
