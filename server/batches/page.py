"""Pages of a list: `after`, `limit` and `order` in the query of a request."""

from dataclasses import dataclass
from typing import Any

from fastapi import Request

from caravan.server.http.errors import invalid, shown


@dataclass(frozen=True)
class Page:
    """Which part of a list to return."""

    after: str | None  # the id of the last object of the page before
    limit: int
    is_descending: bool


def page_of(request: Request, *, max_limit: int, default_limit: int, more: tuple[str, ...] = ()) -> Page:
    """Return the page that a request asks for; raises ApiError 400. `more` are other parameters of the endpoint."""
    query = request.query_params
    for name in query:
        if name not in ("after", "limit", "order", *more):
            raise invalid(f"Unknown parameter {shown(name)} in the query.", name)
        if len(query.getlist(name)) > 1:
            raise invalid(f"The parameter `{name}` is in the query several times.", name)
    limit, order = query.get("limit", str(default_limit)), query.get("order", "desc")
    if not limit.isascii() or not limit.isdecimal() or len(limit) > 9 or not 1 <= int(limit) <= max_limit:
        raise invalid(f"`limit` is {shown(limit)}; it must be an integer from 1 to {max_limit}.", "limit")
    if order not in ("asc", "desc"):
        raise invalid(f"`order` is {shown(order)}; it must be asc or desc.", "order")
    return Page(query.get("after"), int(limit), order == "desc")


def query_parameters(*names: str) -> list[dict[str, Any]]:
    """Return the documentation of such parameters."""
    texts = {
        "after": "Id of the last object of the page before.",
        "limit": "Maximum number of objects.",
        "order": "Order by time of creation: asc or desc (default).",
        "purpose": "Only files with this purpose.",
    }
    return [
        {
            "name": name,
            "in": "query",
            "description": texts[name],
            "schema": {"type": "integer", "minimum": 1} if name == "limit" else {"type": "string"},
        }
        for name in names
    ]
