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
    403: "The API key or the client is not allowed to do this, or the server does not do it.",
    404: "There is no such model, file, batch or request.",
    408: "The body did not arrive in time.",
    410: "The event is no longer kept.",
    413: "The body is too large.",
    415: "The body is not JSON, or its encoding is neither gzip nor zstd.",
    429: "The server is overloaded; retry after `Retry-After` seconds.",
    500: "Internal server error.",
    503: "The server is shutting down, or has no engine and could not start one; retry after `Retry-After` seconds.",
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
_EVENTS: dict[str, Any] = {"text/event-stream": {}}


def errors(*statuses: int, model: type[BaseModel] = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of error responses with a `model` as their body.

    It is a reference: FastAPI builds a validator for each model of each response, which takes most of an app's start.
    """
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}}
    return {
        status: {"description": _ERRORS[status], "content": content}
        | ({"headers": _RETRY_AFTER} if status in (429, 503) else {})
        for status in statuses
    }


def documented(
    schema: type[BaseModel],
    example: dict[str, Any],
    *,
    answer: type[msgspec.Struct],
    is_streamed: bool = False,
    error: type[BaseModel] = ErrorBody,
) -> dict[str, Any]:
    """Return the route arguments that document a request body of this schema, with an example.

    `answer` is the struct of a successful response, `error` the body of all others.
    """
    return {
        "openapi_extra": _body(schema, example),
        "responses": errors(*_ERRORS.keys() - {403, 410}, model=error) | answers(answer, is_streamed=is_streamed),
    }


def documented_text(schema: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """Return the route arguments that document a request body of this schema, which is answered with a line of text."""
    answer = {"description": "Successful response.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {
        "openapi_extra": _body(schema, example),
        "responses": errors(*_ERRORS.keys() - {410}) | {200: answer},
    }


def _body(schema: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    content = {"schema": {"$ref": _REFERENCE.format(model=schema.__name__)}, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def answers(answer: type[msgspec.Struct], *, is_streamed: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of a successful response with an `answer` as its body."""
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=answer.__name__)}}}
    return {200: {"description": "Successful response.", "content": content | (_EVENTS if is_streamed else {})}}


def complete_document(
    app: FastAPI,
    schemas: list[type[BaseModel]],
    answers: list[type[msgspec.Struct]],
    model_names: tuple[str, ...],
    root_path: str = "",
    *,
    can_grow: bool = False,
) -> None:
    """Add `schemas`, `answers`, the names of models and the prefix of paths to the OpenAPI document of `app`.

    The names are all that there are, unless the server `can_grow`: then others can follow.
    The document is generated on first use, which takes a large part of a second.
    """
    write = app.openapi

    @cache
    def openapi() -> dict[str, Any]:
        _, definitions = models_json_schema([(schema, "validation") for schema in schemas], ref_template=_REFERENCE)
        document = write()
        if root_path:
            document["servers"] = [{"url": root_path}]
        _, components = msgspec.json.schema_components(answers, ref_template=_REFERENCE.replace("model", "name"))
        document["components"]["schemas"] |= components
        for name, definition in definitions["$defs"].items():
            document["components"]["schemas"][name] = definition
            model = definition.get("properties", {}).get("model")
            if model is not None and not can_grow:
                (model if "type" in model else model["anyOf"][0])["enum"] = list(model_names)
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)  # FastAPI's validation error, which is never sent
                if path == "/v1/models/{name}" and not can_grow:
                    operation["parameters"][0]["schema"]["enum"] = list(model_names)
                for content in operation.get("requestBody", {}).get("content", {}).values():
                    if "model" in content["example"]:
                        content["example"]["model"] = model_names[0]
        return document

    async def send_document(_: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(openapi))  # streams continue meanwhile

    app.openapi = openapi  # type: ignore[method-assign]  # as documented by FastAPI
    app.add_route("/openapi.json", send_document, include_in_schema=False)
