"""Numbers in JSON schemas: those that the grammar library represents exactly, and regular expressions for others.

llguidance holds every number of a schema as a float64 and every bound of integers as an int64, so 1234567890123456789
silently becomes ...768; and it reads fractions of 16 digits and more with an error in the last one. What is held
exactly stays in the schema. For other integers the range, or the number itself, is written as a regular expression.
"""

import json
import math
from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from typing import Any

from caravan.server.http.errors import shown
from caravan.server.openai.structured_output.schema_error import SchemaError

_MAX_EXACT = 2**53  # a float64 holds all integers up to this one
_MAX_BOUND = 10**18  # the library's ranges of larger integers overflow
_LARGEST_KEPT = 10**18 - 128  # below that, and a float64
# The library reads fractions as float64, exactly up to this many digits and decimal places.
_MAX_DIGITS_KEPT = 15
_MAX_PLACES = 22
_MAX_FREE_PLACES = 9  # the library takes 1e-9 as it is, and 1e-12 not
_SMALLEST = Decimal(1).scaleb(-_MAX_PLACES)
_WIDE = Context(prec=2000, Emax=MAX_EMAX, Emin=MIN_EMIN)
_MAX_MULTIPLE = 2**32 - 1
_MAX_DIGITS = 400  # of an integer
BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})

Number = int | float


def number(value: Any, keyword: str) -> Number:
    """Return the value of a keyword that must be a number; raises SchemaError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SchemaError(f"`{keyword}` is {shown(value)}; it must be a number")
    if isinstance(value, int) and abs(value) >= 10**_MAX_DIGITS:
        raise SchemaError(f"`{keyword}` has a number of more than {_MAX_DIGITS} digits")
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_EXACT else value


def count(value: Any, keyword: str) -> int:
    """Return the value of a keyword that must be a count; 2.0 is read as 2. Raises SchemaError."""
    found = number(value, keyword)
    if not isinstance(found, int) or found < 0:
        raise SchemaError(f"`{keyword}` is {shown(value)}; it must be an integer of at least 0")
    return found


def checked_bounds(schema: dict[str, Any]) -> dict[str, Number]:
    """Return the bounds of a schema, by keyword; draft 4's `exclusiveMinimum: true` as in 2020-12."""
    found = {name: value for name, value in schema.items() if name in BOUNDS}
    for name, excluded in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(found.get(excluded), bool):
            is_excluded = found.pop(excluded)
            if is_excluded and name in found:
                found[excluded] = found.pop(name)
    return {name: number(value, name) for name, value in found.items()}


def is_within(value: Any, bounds: dict[str, Number]) -> bool:
    """Return whether a JSON value is within the bounds; they exclude numbers only."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    return (
        bounds.get("minimum", value) <= value <= bounds.get("maximum", value)
        and ("exclusiveMinimum" not in bounds or bounds["exclusiveMinimum"] < value)
        and ("exclusiveMaximum" not in bounds or value < bounds["exclusiveMaximum"])
    )


def integer_bounds(schema: dict[str, Any]) -> tuple[int | None, int | None]:
    """Return the least and the greatest integer that the bounds of a schema allow; None where there is no bound."""
    bounds = checked_bounds(schema)
    least = [math.ceil(bounds[name]) for name in ("minimum",) if name in bounds]
    least += [math.floor(bounds[name]) + 1 for name in ("exclusiveMinimum",) if name in bounds]
    most = [math.floor(bounds[name]) for name in ("maximum",) if name in bounds]
    most += [math.ceil(bounds[name]) - 1 for name in ("exclusiveMaximum",) if name in bounds]
    return max(least, default=None), min(most, default=None)


def number_bounds(schema: dict[str, Any]) -> dict[str, Number]:
    """Return the bounds of a schema as the library represents them, never wider; raises SchemaError if it cannot.

    A text may have any number of digits and is read as float64: 4.999...9 is below 5 but is read as 5. So with an
    exclusive bound numbers have as many decimal places as a float64 distinguishes, at most 9 (`multipleOf`).
    """
    bounds = checked_bounds(schema)
    result: dict[str, Number] = {}
    for name, bound in bounds.items():
        is_least = name in ("minimum", "exclusiveMinimum")
        inside = _inside(bound, ROUND_CEILING if is_least else ROUND_FLOOR)
        if abs(inside) >= _MAX_BOUND:
            if (inside > 0) == is_least:
                raise SchemaError(f"`{name}` is {shown(bound)}; bounds beyond 1e18 cannot be enforced exactly")
            inside = Decimal(-_LARGEST_KEPT if is_least else _LARGEST_KEPT)
        # A bound that was rounded is inside already.
        key = name if inside == _decimal(bound) else "minimum" if is_least else "maximum"
        kept = _plain(inside)
        result[key] = (max if is_least else min)(kept, result.get(key, kept))
    excluded = [abs(result[name]) for name in ("exclusiveMinimum", "exclusiveMaximum") if name in result]
    if excluded:
        places = max(0, min(_MAX_FREE_PLACES, _MAX_DIGITS_KEPT - len(str(int(max(excluded))))))
        if -_exponent(_decimal(schema.get("multipleOf", 1))) > places:
            raise SchemaError("`multipleOf` has too many decimal places for an exclusive bound")
        if "multipleOf" not in schema:
            result["multipleOf"] = _plain(Decimal(1).scaleb(-places))
    return result


def reachable(least: int | None, most: int | None) -> tuple[int | None, int | None]:
    """Return bounds of integers; a bound far outside the library's range is moved to the end of the range."""
    is_within = (least is None or least <= _LARGEST_KEPT) and (most is None or most >= -_LARGEST_KEPT)
    if is_within and least is not None:
        least = max(least, -_LARGEST_KEPT)
    if is_within and most is not None:
        most = min(most, _LARGEST_KEPT)
    return least, most


def are_kept(*bounds: int | None) -> bool:
    """Return whether the library represents bounds of integers exactly."""
    return all(bound is None or (abs(bound) < _MAX_BOUND and float(bound) == bound) for bound in bounds)


def is_kept(value: Any) -> bool:
    """Return whether the library represents every number in a JSON value exactly."""
    if isinstance(value, dict):
        return all(map(is_kept, value.values()))
    if isinstance(value, list):
        return all(map(is_kept, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    if isinstance(value, int):
        return abs(value) < _MAX_BOUND and float(value) == value
    digits = len(_decimal(value).normalize(_WIDE).as_tuple().digits)
    return digits <= _MAX_DIGITS_KEPT and _exponent(_decimal(value)) >= -_MAX_PLACES and abs(value) < _MAX_EXACT


def canonical(value: Any) -> Any:
    """Return a JSON value with whole numbers as integers, which the library considers equal: 1.0 as 1, -0.0 as 0."""
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer() and _decimal(value) == int(value):
        return int(value)
    return value


def literal(value: Any) -> str:
    """Return the JSON text of a value, spaced as in responses."""
    return json.dumps(value, ensure_ascii=False)


def checked_multiple(value: Any) -> Number:
    """Return the value of `multipleOf`; raises SchemaError if the library would use another number instead."""
    found = number(value, "multipleOf")
    if found <= 0:
        raise SchemaError(f"`multipleOf` is {shown(value)}; it must be greater than 0")
    if not is_kept(found):
        raise SchemaError(f"`multipleOf` is {found!r}, which has too many digits to be enforced exactly")
    coefficient, exponent = _as_library_reads(float(found)) if found <= _MAX_EXACT else (_MAX_MULTIPLE + 1, 0)
    if coefficient > _MAX_MULTIPLE or Fraction(coefficient, 10**exponent) != Fraction(repr(found)):
        raise SchemaError(f"`multipleOf` is {found!r}, which has too many digits to be enforced exactly")
    return found


def can_meet(multiples: set[Number]) -> bool:
    """Return whether the library's 32 bits hold the least common multiple of any of these numbers."""
    exponent = max(-int(Decimal(repr(multiple)).normalize().as_tuple().exponent) for multiple in multiples)
    scaled = [int(Decimal(repr(multiple)).scaleb(max(exponent, 0))) for multiple in multiples]
    return math.prod(scaled) <= _MAX_MULTIPLE


def integer_range(least: int | None, most: int | None) -> str:
    """Return a regular expression of the integers from `least` to `most`, both included; None: no bound."""
    parts = []
    if most is None or most >= 0:
        parts += _naturals(max(least or 0, 0) if least is None or least >= 0 else 0, most)
    if least is None or least < 0:
        nearest = 1 if most is None or most >= 0 else -most
        parts += [f"-{part}" for part in _naturals(nearest, None if least is None else -least)]
    return "|".join(parts)


def _naturals(least: int, most: int | None) -> list[str]:
    """Return alternatives for the integers from `least` to `most`, neither below 0."""
    if most is None:
        digits = len(str(least))
        return [*_naturals(least, 10**digits - 1), f"[1-9][0-9]{{{digits},}}"]
    parts = []
    while least <= most:
        # The longest run of digits at the end that can be anything from here on.
        free = 0
        while least % 10 ** (free + 1) == 0 and least and least + 10 ** (free + 1) - 1 <= most:
            free += 1
        head, digit = divmod(least // 10**free, 10)
        last = min(9, digit + (most - least - 10**free + 1) // 10**free)
        prefix = str(head) if head else ""
        span = str(digit) if last == digit else f"[{digit}-{last}]"
        parts.append(prefix + span + (f"[0-9]{{{free}}}" if free else ""))
        least = (head * 10 + last + 1) * 10**free
    return parts


def _decimal(value: Number) -> Decimal:
    return Decimal(repr(value))


def _inside(bound: Number, rounding: str) -> Decimal:
    """Return the bound, rounded inwards to the number of digits that the library represents."""
    rounded = Context(prec=_MAX_DIGITS_KEPT, rounding=rounding).plus(_decimal(bound))
    return rounded if _exponent(rounded) >= -_MAX_PLACES else rounded.quantize(_SMALLEST, rounding, _WIDE)


def _exponent(value: Decimal) -> int:
    """Return the power of ten of the last digit that is not 0."""
    exponent = value.normalize(_WIDE).as_tuple().exponent
    assert isinstance(exponent, int)
    return exponent


def _plain(value: Decimal) -> Number:
    return int(value) if value == value.to_integral_value(context=_WIDE) else float(value)


def _as_library_reads(value: float) -> tuple[int, int]:
    """Return coefficient and exponent, coefficient / 10**exponent, as llguidance 1.9 finds them for `multipleOf`."""
    exponent = 0
    while not value.is_integer() and value <= _MAX_MULTIPLE:
        value *= 10
        exponent += 1
    return math.ceil(value), exponent


_UNREACHABLE = 2**31  # more characters, items or properties than a response can have


def with_limits(schema: dict[str, Any], least: str, most: str) -> dict[str, Any]:
    """Return those of two keywords that exclude a value; raises SchemaError unless they are counts."""
    result = {}
    if count(schema.get(least, 0), least):
        result[least] = count(schema[least], least)
    if most in schema and count(schema[most], most) < _UNREACHABLE:
        result[most] = count(schema[most], most)
    return result
