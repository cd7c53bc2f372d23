"""The request body: read within limits, parsed strictly, validated against a schema."""

import asyncio
import json
import math
import re
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from server.openai.errors import ApiError, invalid
from server.openai.validation import first_problem
from server.request_limits import RequestLimits

_LONG_BODY_BYTES = 32 * 1024  # parsed in a thread from here on, so that the event loop goes on
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")

Schema = TypeVar("Schema", bound=BaseModel)


async def read_body(request: Request, schema: type[Schema], limits: RequestLimits) -> Schema:
    """Return the body of `request` as an instance of `schema`; raises ApiError 400, 408, 413 or 415."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(415, "The content type must be application/json.")
    body = await _read_bytes(request, limits)
    if len(body) < _LONG_BODY_BYTES:
        return _parse(body, schema)
    return await asyncio.to_thread(_parse, body, schema)


def parse_json(body: bytes) -> Any:
    """Return the JSON value in `body`; what other parsers could read differently is refused with ApiError 400.

    Refused are, beside syntax errors: text that is not UTF-8, lone surrogates, NaN and Infinity, numbers out of
    range, keys that occur twice in an object, and nesting deeper than Python's recursion limit.
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_float=_finite_float, parse_constant=_refuse_constant)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        raise invalid("The body is not UTF-8.") from None
    except UnicodeEncodeError:
        raise invalid("The body has a lone surrogate, which is not a character.") from None
    except json.JSONDecodeError as error:
        raise invalid(f"The body is not JSON: {error.msg} at character {error.pos}.") from None
    except RecursionError:
        raise invalid("The body is nested too deeply.") from None
    except ValueError:  # an integer of more than 4300 digits
        raise invalid("The body has a number with too many digits.") from None
    return value


async def _read_bytes(request: Request, limits: RequestLimits) -> bytes:
    too_large = ApiError(413, f"The body is larger than {limits.max_body_bytes} bytes, the most this server takes.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_timeout_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_body_bytes:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {limits.body_timeout_seconds:g} seconds.") from None
    return bytes(body)


def _parse(body: bytes, schema: type[Schema]) -> Schema:
    value = parse_json(body)
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise first_problem(error, value) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise invalid("An object in the body has the same key twice.")
    return result


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise invalid("The body has a number out of range.")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise invalid(f"The body is not JSON: {name} is not a JSON value.")
