"""JSON responses."""

from typing import Any

import msgspec
from fastapi import Response


def json_response(body: Any) -> Response:
    """Return a 200 response with a struct as its JSON body."""
    return Response(msgspec.json.encode(body), media_type="application/json")
