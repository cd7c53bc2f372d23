"""Lines of JSON: one object in each line, as application/x-ndjson has them."""

from typing import Any

from caravan.server.http.sse import event

_FIELD, _END = b"data: ", b"\n"


def json_line(payload: Any) -> bytes:
    """Return a line: the data of an event, which has no character that clients could take for the end of a line."""
    return event(payload).removeprefix(_FIELD).removesuffix(_END)
