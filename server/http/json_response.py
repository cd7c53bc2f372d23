"""A response whose body is a struct, as JSON."""

from typing import Any

import msgspec
from fastapi import Response


def json_response(body: Any) -> Response:
    """Return a response of status 200 with this body."""
    return Response(msgspec.json.encode(body), media_type="application/json")
