"""The errors of Ollama's API."""

from typing import Any

from caravan.server.http.error_form import ErrorForm
from caravan.server.http.errors import ApiError


def ollama_error(error: ApiError, _request_id: str = "") -> dict[str, Any]:
    """Return the JSON object of an error response, or of a line."""
    return {"error": error.body()["error"]["message"]}


OLLAMA = ErrorForm(body=ollama_error, paths=("/api/",))
