"""What the OpenAPI document says of routes that read their bodies themselves."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.openai.errors import ErrorBody

_REFERENCE = "#/components/schemas/{model}"
_ERRORS = {
    400: "A value cannot be used; `param` says which.",
    401: "The API key is missing or wrong, where the server has keys.",
    404: "There is no such model.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    500: "The server failed.",
    503: "The engine is not ready; `Retry-After` says when to come back.",
}


def documented(schema: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments that document a route whose body is a `schema`, such as `example`."""
    content = {"schema": {"$ref": _REFERENCE.format(model=schema.__name__)}, "example": example}
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": content}}},
        "responses": {status: {"model": ErrorBody, "description": text} for status, text in _ERRORS.items()},
    }


def add_schemas(app: FastAPI, schemas: list[type[BaseModel]]) -> None:
    """Make `app`'s OpenAPI document define `schemas`; the routes must be there already."""
    _, definitions = models_json_schema([(schema, "validation") for schema in schemas], ref_template=_REFERENCE)
    app.openapi()["components"]["schemas"].update(definitions["$defs"])
