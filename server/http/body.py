"""Request bodies: read within limits and decoded strictly."""

import asyncio
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import msgspec
from fastapi import Request

from caravan.server.generation.request_limits import RequestLimits
from caravan.server.http.body_memory import SCOPE_BODY, SMALL_BYTES, BodyReservation
from caravan.server.http.content_encoding import TooLong, content_encoding, decoded
from caravan.server.http.errors import ApiError, invalid, overloaded
from caravan.server.http.json_scan import MAX_DEPTH, TOO_DEEP, FieldSpan, WrongJson, scan_json

RETRY_SECONDS = 1  # after a request was rejected for its body's memory

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_FOUR_BYTES = re.compile(rb"[\xf0-\xf4]")  # the first byte of characters that need 4 bytes in a str
_BYTES_OF_NUMBER = 40  # an int and its entry in a list
_BYTES_OF_VALUE = 240  # a dict with one item; lists and strings are smaller
_SHOWN_BYTES = 256  # of a string in an unknown field; a longer one is replaced

Body = TypeVar("Body")


async def read_body(
    request: Request, limits: RequestLimits, fields: frozenset[str], validate: Callable[[Any], Body]
) -> Body:
    """Return the JSON body of `request`, passed through `validate`; raises ApiError 400, 408, 413, 415, 429.

    `fields` are the known fields; in a long body the values of all others are emptied.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(415, "The content type must be application/json.")
    encoding = content_encoding(request.headers.get("content-encoding", ""))
    reservation: BodyReservation = request.scope[SCOPE_BODY]
    body = await _read_bytes(request, limits, reservation)
    if encoding:
        try:
            body = await reservation.memory.run(decoded, body, encoding, limits.max_body_bytes)
        except TooLong:
            raise _too_large(limits) from None
        _take(reservation, len(body))
    if len(body) < SMALL_BYTES:
        return validate(parse_json(body))
    return await reservation.memory.run(validate, await _decode_long(body, fields, reservation))


def parse_json(body: bytes) -> Any:
    """Return the JSON value in `body`; raises ApiError 400 for anything that parsers could read differently.

    That is, in addition to syntax errors: text that is not UTF-8, lone surrogates, NaN and Infinity, numbers out of
    range, duplicate keys in an object, and nesting deeper than MAX_DEPTH.
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_float=_finite_float, parse_constant=_reject_constant)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        raise invalid("The body is not UTF-8.") from None
    except UnicodeEncodeError:
        raise invalid("The body has a lone surrogate, which is not a character.") from None
    except json.JSONDecodeError as error:
        raise invalid(f"The body is not JSON: {error.msg} at character {error.pos}.") from None
    except RecursionError:
        raise invalid(TOO_DEEP) from None
    except ValueError:  # an integer of more than 4300 digits
        raise invalid("The body has a number with too many digits.") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_too_deep(value):
        raise invalid(TOO_DEEP)
    return value


async def _read_bytes(request: Request, limits: RequestLimits, reservation: BodyReservation) -> bytes:
    """Return the body as it was sent."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal():
        if int(declared) > limits.max_body_bytes:
            raise _too_large(limits)
        _take(reservation, int(declared), is_declared=True)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_timeout_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_body_bytes:
                    raise _too_large(limits)
                _take(reservation, len(body))
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {limits.body_timeout_seconds:g} seconds.") from None
    return bytes(body)


def _take(reservation: BodyReservation, num_bytes: int, *, is_declared: bool = False) -> None:
    if not reservation.grow(num_bytes):
        error = no_memory()
        error.is_body_unread = (
            not is_declared
        )  # else the rest is read and dropped, so that the client gets the response
        raise error


def no_memory() -> ApiError:
    """Return the error for a body that exceeds the memory limit of all bodies."""
    return overloaded("The memory for request bodies is full (--max-body-memory).", RETRY_SECONDS)


def _too_large(limits: RequestLimits) -> ApiError:
    return ApiError(413, f"The body exceeds the limit of {limits.max_body_bytes} bytes.")


async def _decode_long(body: bytes, known: frozenset[str], reservation: BodyReservation) -> Any:
    """Return the JSON value in a long body; the values of unknown fields are emptied.

    The reservation is resized to the size of the objects before they are created.
    """
    try:
        fields, num_bytes = await reservation.memory.run(_plan, body, known)
    except WrongJson as error:
        raise invalid(str(error)) from None
    if not reservation.resize(max(num_bytes, len(body))):
        raise no_memory()
    value = await reservation.memory.run(_decode_fields, body, fields, known)
    reservation.resize(num_bytes)
    return value


def _plan(body: bytes, known: frozenset[str]) -> tuple[dict[str, FieldSpan] | None, int]:
    """Return the byte span of each field, and the estimated memory in bytes of the known fields, decoded."""
    fields = scan_json(body)
    if fields is None:
        return None, 0
    return fields, sum(_object_bytes(body, span) for name, span in fields.items() if name in known)


def _decode_fields(body: bytes, fields: Mapping[str, FieldSpan] | None, known: frozenset[str]) -> Any:
    if fields is None:
        return _emptied(body)
    text = memoryview(body)
    return {
        name: msgspec.json.decode(text[span.start : span.end])
        if name in known
        else _emptied(body[span.start : span.end])
        for name, span in fields.items()
    }


def _emptied(text: bytes) -> Any:
    """Return the value of an unknown field: a list, an object or a long string becomes empty."""
    text = text.strip()
    match text[:1]:
        case b"[":
            return []
        case b"{":
            return {}
        case b'"' if len(text) > _SHOWN_BYTES:
            return ""
        case _:
            return msgspec.json.decode(text)


def _object_bytes(body: bytes, span: FieldSpan) -> int:
    """Estimate the bytes that the objects of a value take."""
    bytes_of_character = 1
    if not body.isascii():
        bytes_of_character = 4 if _FOUR_BYTES.search(body, span.start, span.end) else 2
    text_bytes = (span.end - span.start) * bytes_of_character
    return text_bytes + span.num_numbers * _BYTES_OF_NUMBER + span.num_values * _BYTES_OF_VALUE


def _is_too_deep(value: Any) -> bool:
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            return True
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise invalid("An object in the body has a duplicate key.")
    return result


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise invalid("The body has a number out of range.")
    return value


def _reject_constant(name: str) -> NoReturn:
    raise invalid(f"The body is not JSON: {name} is not a JSON value.")
