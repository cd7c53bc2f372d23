"""GET /v1/models in Anthropic's form, for requests with the header `anthropic-version`."""

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import QueryParams
from starlette.routing import Match
from starlette.types import Scope
from typing_extensions import override

from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.error_form import SCOPE_FORM
from caravan.server.http.errors import invalid, shown
from caravan.server.http.json_response import json_response
from caravan.server.messages.error_form import ANTHROPIC
from caravan.server.messages.protocol.models import MessageModel, MessageModelList
from caravan.server.openai.models import chosen_model

MAX_LIMIT, DEFAULT_LIMIT = 1000, 20  # models of a page
_STAGES = ("active", "deprecated", "retired")


class AnthropicRoute(APIRoute):
    """A route of requests that belong to Anthropic's API; others with its path go to the next route."""

    @override
    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if scope.get(SCOPE_FORM) is ANTHROPIC else (Match.NONE, {})


def anthropic_models_router(models: ServedModels) -> APIRouter:
    """Return the router, which must stand before the one of OpenAI's form."""
    router = APIRouter(tags=["models"], route_class=AnthropicRoute, include_in_schema=False)

    def entry(served: ServedModel, name: str) -> MessageModel:
        return MessageModel(
            id=name,
            display_name=name,
            created_at=datetime.fromtimestamp(served.created_at, UTC),
            max_input_tokens=served.max_model_len,
            max_tokens=served.max_model_len,
        )

    @router.get("/v1/models")
    async def list_models(request: Request) -> Response:
        named = models.named
        page, has_more = _page([*named], request.query_params)
        ends = {"first_id": page[0], "last_id": page[-1]} if page else {}
        data = [entry(named[name], name) for name in page]
        return json_response(MessageModelList(data=data, has_more=has_more, **ends))

    @router.get("/v1/models/{name:path}")
    async def retrieve_model(name: str, request: Request) -> Response:
        return json_response(entry(chosen_model(models, name, request.scope), name))

    return router


def _page(names: list[str], query: QueryParams) -> tuple[list[str], bool]:
    """Return the names that a query asks for, and whether more follow in its direction; raises ApiError."""
    limit = query.get("limit", str(DEFAULT_LIMIT))
    if not (limit.isascii() and limit.isdecimal() and len(limit) <= 4 and 1 <= int(limit) <= MAX_LIMIT):
        raise invalid(f"`limit` is {shown(limit)}; it must be an integer from 1 to {MAX_LIMIT}.", "limit")
    stages = query.getlist("lifecycle[]") or query.getlist("lifecycle")
    for stage in stages:
        if stage not in _STAGES:
            raise invalid(f"`lifecycle` is {shown(stage)}; it must be one of {', '.join(_STAGES)}.", "lifecycle")
    if stages and "active" not in stages:  # all models are
        return [], False
    after, before = query.get("after_id"), query.get("before_id")
    if after is not None and before is not None:
        raise invalid("`after_id` and `before_id` cannot be combined; send one of them.", "before_id")
    for param, name in (("after_id", after), ("before_id", before)):
        if name is not None and name not in names:
            raise invalid(f"`{param}` is {shown(name)}; there is no such model.", param)
    if before is not None:
        left = names[: names.index(before)]
        return left[-int(limit) :], len(left) > int(limit)
    left = names if after is None else names[names.index(after) + 1 :]
    return left[: int(limit)], len(left) > int(limit)
