"""OpenAPI documentation of request bodies, responses and errors."""

import asyncio
from functools import cache
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from caravan.server.http.errors import ErrorBody

_REFERENCE = "#/components/schemas/{model}"
_ERRORS = {
    400: "A value is invalid; `param` names it.",
    401: "The API key is missing or invalid.",
    403: "The API key is not allowed to do this.",
    404: "There is no such model, file, batch or request.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not JSON, or its encoding is neither gzip nor zstd.",
    429: "The server is overloaded; retry after `Retry-After` seconds.",
    500: "Internal server error.",
    503: "The engine is not ready; retry after `Retry-After` seconds.",
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
_EVENTS: dict[str, Any] = {"text/event-stream": {}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of error responses."""
    return {
        status: {"model": ErrorBody, "description": _ERRORS[status]}
        | ({"headers": _RETRY_AFTER} if status in (429, 503) else {})
        for status in statuses
    }


def documented(
    schema: type[BaseModel],
    example: dict[str, Any],
    *,
    answer: type[msgspec.Struct],
    is_streamed: bool = False,
) -> dict[str, Any]:
    """Return the route arguments that document a request body of this schema, with an example.

    `answer` is the struct of a successful response.
    """
    content = {"schema": {"$ref": _REFERENCE.format(model=schema.__name__)}, "example": example}
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": content}}},
        "responses": errors(*_ERRORS.keys() - {403}) | answers(answer, is_streamed=is_streamed),
    }


def answers(answer: type[msgspec.Struct], *, is_streamed: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of a successful response with an `answer` as its body."""
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=answer.__name__)}}}
    return {200: {"description": "Successful response.", "content": content | (_EVENTS if is_streamed else {})}}


def complete_document(
    app: FastAPI, schemas: list[type[BaseModel]], answers: list[type[msgspec.Struct]], model_names: tuple[str, ...]
) -> None:
    """Add `schemas`, `answers` and the valid names of `model` to the OpenAPI document of `app`.

    The document is generated on first use, which takes a large part of a second.
    """
    write = app.openapi

    @cache
    def openapi() -> dict[str, Any]:
        _, definitions = models_json_schema([(schema, "validation") for schema in schemas], ref_template=_REFERENCE)
        document = write()
        _, components = msgspec.json.schema_components(answers, ref_template=_REFERENCE.replace("model", "name"))
        document["components"]["schemas"] |= components
        for name, definition in definitions["$defs"].items():
            document["components"]["schemas"][name] = definition
            model = definition.get("properties", {}).get("model")
            if model is not None:
                (model if "type" in model else model["anyOf"][0])["enum"] = list(model_names)
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)  # FastAPI's validation error, which is never sent
                if path == "/v1/models/{name}":
                    operation["parameters"][0]["schema"]["enum"] = list(model_names)
                for content in operation.get("requestBody", {}).get("content", {}).values():
                    if "model" in content["example"]:
                        content["example"]["model"] = model_names[0]
        return document

    async def send_document(_: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(openapi))  # streams continue meanwhile

    app.openapi = openapi  # type: ignore[method-assign]  # as documented by FastAPI
    app.add_route("/openapi.json", send_document, include_in_schema=False)
