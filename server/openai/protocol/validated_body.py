"""The body of a request, read and validated against the schema of its endpoint."""

from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError

from caravan.server.generation.request_limits import RequestLimits
from caravan.server.http import body
from caravan.server.openai.protocol.strict_model import StrictModel
from caravan.server.openai.protocol.validation import first_problem

Schema = TypeVar("Schema", bound=StrictModel)


async def read_body(request: Request, schema: type[Schema], limits: RequestLimits) -> Schema:
    """Return the body of `request` as an instance of `schema`; raises ApiError 400, 408, 413, 415 or 429."""

    def validate(value: Any) -> Schema:
        try:
            return schema.model_validate(value)
        except ValidationError as error:
            raise first_problem(error, value) from None

    return await body.read_body(request, limits, schema.fields_with_meaning(), validate)
