"""Lengths: a distribution of prompt or output lengths, in tokens, and its notation."""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

NOTATION = "128, 64-256 (uniform), 128~32 (normal: mean~deviation), or 128*1.5 (lognormal: median*factor)"
_NUMBER = r"\d+(?:\.\d+)?"
_FORM = re.compile(rf"(?P<first>{_NUMBER})(?:(?P<sign>[-~*])(?P<second>{_NUMBER}))?")


@dataclass(frozen=True)
class Lengths:
    """A distribution over whole numbers from 1 on."""

    text: str  # as it was written
    draw: Callable[[random.Random], int]


def parse_lengths(text: str) -> Lengths:
    """Return the distribution written as `128`, `64-256`, `128~32` or `128*1.5`.

    With the last form, two thirds of the lengths are between median / factor and median * factor. Raises ValueError.
    """
    form = _FORM.fullmatch(text)
    if form is None:
        raise ValueError(f"{text!r} is not a length. Use {NOTATION}.")
    first, second = float(form["first"]), float(form["second"] or 0)
    if first < 1:
        raise ValueError(f"{text!r} is not a length: it must be at least 1 token.")

    def whole(value: float) -> int:
        return max(1, round(value))

    match form["sign"]:
        case "-":
            if second < first:
                raise ValueError(f"{text!r} is not a range: {second:g} is less than {first:g}.")
            return Lengths(text, lambda source: source.randint(whole(first), whole(second)))
        case "~":
            return Lengths(text, lambda source: whole(source.gauss(first, second)))
        case "*":
            if second < 1:
                raise ValueError(f"{text!r} is not a lognormal length: the factor must be at least 1.")
            return Lengths(text, lambda source: whole(first * math.exp(source.gauss(0, math.log(second)))))
    return Lengths(text, lambda _: whole(first))


def parse_concurrency(text: str) -> tuple[int, ...]:
    """Return the numbers in `1,8,32`. Raises ValueError."""
    if re.fullmatch(r"[1-9]\d{0,5}(?:,[1-9]\d{0,5})*", text) is None:
        raise ValueError(f"{text!r} is not a number of concurrent requests. Use 8, or several as in 1,8,32.")
    return tuple(map(int, text.split(",")))
