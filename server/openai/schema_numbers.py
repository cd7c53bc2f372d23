"""Numbers of JSON schemas that the grammar library keeps exactly, and regular expressions for those it does not.

llguidance holds every number of a schema as a float64 and every bound of integers as an int64, so 1234567890123456789
becomes ...768 without a word; and it reads fractions of 16 digits and more with an error in the last one. What is held
exactly stays in the schema. For other integers the range, or the number itself, is written as a regular expression.
"""

import json
import math
from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from typing import Any

from server.openai.errors import shown
from server.openai.schema_error import SchemaError

_MAX_EXACT = 2**53  # from here on a float64 leaves integers out
_MAX_BOUND = 10**18  # the library's ranges of larger integers overflow
_LARGEST_KEPT = 10**18 - 128  # below that, and a float64
# The library reads fractions as float64, and only those with so many digits and decimal places without an error.
_MAX_DIGITS_KEPT = 15
_MAX_PLACES = 22
_SMALLEST = Decimal(1).scaleb(-_MAX_PLACES)
_WIDE = Context(prec=2000, Emax=MAX_EMAX, Emin=MIN_EMIN)
_MAX_MULTIPLE = 2**32 - 1
_MAX_DIGITS = 400  # of an integer
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")

Number = int | float


def number(value: Any, keyword: str) -> Number:
    """Return the value of a keyword that must be a number; raises SchemaError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SchemaError(f"`{keyword}` is {shown(value)}; it must be a number")
    if isinstance(value, int) and abs(value) >= 10**_MAX_DIGITS:
        raise SchemaError(f"`{keyword}` has a number of more than {_MAX_DIGITS} digits")
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_EXACT else value


def count(value: Any, keyword: str) -> int:
    """Return the value of a keyword that counts; 2.0 is 2. Raises SchemaError."""
    found = number(value, keyword)
    if not isinstance(found, int) or found < 0:
        raise SchemaError(f"`{keyword}` is {shown(value)}; it must be an integer of at least 0")
    return found


def checked_bounds(schema: dict[str, Any]) -> dict[str, Number]:
    """Return the bounds of a schema, by keyword; draft 4's `exclusiveMinimum: true` in the words of 2020-12."""
    found = {name: schema[name] for name in _BOUNDS if name in schema}
    for name, excluded in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(found.get(excluded), bool):
            is_excluded = found.pop(excluded)
            if is_excluded and name in found:
                found[excluded] = found.pop(name)
    return {name: number(value, name) for name, value in found.items()}


def is_within(value: Any, bounds: dict[str, Number]) -> bool:
    """Return whether a JSON value is no number or keeps to the bounds."""
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
    """Return `minimum` and `maximum` for texts that are read as float64: both included, at most as wide as asked.

    A text may have any number of digits: 4.999...9 is below 5 but is read as 5. So a bound that is excluded becomes the
    nearest number inside that the library keeps. Raises SchemaError if there is none.
    """
    bounds = checked_bounds(schema)
    least = [_inside(bounds[name], ROUND_CEILING) for name in ("minimum", "exclusiveMinimum") if name in bounds]
    most = [_inside(bounds[name], ROUND_FLOOR) for name in ("maximum", "exclusiveMaximum") if name in bounds]
    if "exclusiveMinimum" in bounds and least[-1] <= _decimal(bounds["exclusiveMinimum"]):
        least[-1] = _next(least[-1], ROUND_CEILING)
    if "exclusiveMaximum" in bounds and most[-1] >= _decimal(bounds["exclusiveMaximum"]):
        most[-1] = _next(most[-1], ROUND_FLOOR)
    for bound in [*(bound for bound in least if bound > 0), *(bound for bound in most if bound < 0)]:
        if abs(bound) >= _MAX_BOUND:
            raise SchemaError(f"it has a bound of numbers beyond 1e18 ({bound:.6e}), which cannot be kept exactly")
    result: dict[str, Number] = {}
    if least:
        result["minimum"] = _plain(max(*least, Decimal(-_LARGEST_KEPT)))
    if most:
        result["maximum"] = _plain(min(*most, Decimal(_LARGEST_KEPT)))
    return result


def reachable(least: int | None, most: int | None) -> tuple[int | None, int | None]:
    """Return bounds of integers, those far outside moved to where the library can write them."""
    if least is not None and least <= -_MAX_BOUND:
        least = -_LARGEST_KEPT
    if most is not None and most >= _MAX_BOUND:
        most = _LARGEST_KEPT
    return least, most


def are_kept(*bounds: int | None) -> bool:
    """Return whether the library keeps bounds of integers exactly."""
    return all(bound is None or (abs(bound) < _MAX_BOUND and float(bound) == bound) for bound in bounds)


def is_kept(value: Any) -> bool:
    """Return whether the library keeps every number in a JSON value exactly."""
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
    """Return a JSON value with its numbers as the library takes them for equal: 1.0 as 1, -0.0 as 0."""
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer() and _decimal(value) == int(value):
        return int(value)
    return value


def literal(value: Any) -> str:
    """Return the JSON text of a value, spaced as answers are."""
    return json.dumps(value, ensure_ascii=False)


def checked_multiple(value: Any) -> Number:
    """Return the value of `multipleOf`; raises SchemaError if the library would take another number for it."""
    found = number(value, "multipleOf")
    if found <= 0:
        raise SchemaError(f"`multipleOf` is {shown(value)}; it must be greater than 0")
    if not is_kept(found):
        raise SchemaError(f"`multipleOf` is {found!r}, which cannot be kept exactly; it has too many digits")
    coefficient, exponent = _as_library_reads(float(found)) if found <= _MAX_EXACT else (_MAX_MULTIPLE + 1, 0)
    if coefficient > _MAX_MULTIPLE or Fraction(coefficient, 10**exponent) != Fraction(repr(found)):
        raise SchemaError(f"`multipleOf` is {found!r}, which cannot be kept exactly; it has too many digits")
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
    """Return the bound, rounded inwards to the digits that the library keeps."""
    rounded = Context(prec=_MAX_DIGITS_KEPT, rounding=rounding).plus(_decimal(bound))
    return rounded if _exponent(rounded) >= -_MAX_PLACES else rounded.quantize(_SMALLEST, rounding, _WIDE)


def _next(bound: Decimal, rounding: str) -> Decimal:
    """Return the next number inside the bound that the library keeps."""
    context = Context(prec=_MAX_DIGITS_KEPT, rounding=rounding)
    step = context.next_plus(bound) if rounding == ROUND_CEILING else context.next_minus(bound)
    if _exponent(step) >= -_MAX_PLACES:
        return step
    return _WIDE.add(bound, _SMALLEST if rounding == ROUND_CEILING else -_SMALLEST)


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
