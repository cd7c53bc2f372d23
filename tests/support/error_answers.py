"""The one form of all errors."""

import httpx

from tests.server.openai.api import Body


def error_of(response: httpx.Response, status: int = 400) -> Body:
    """Return the error, which must have the form all errors have."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.content.isascii()
    assert len(response.content) < 1024
    assert set(response.json()) == {"error"}
    error: Body = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error
