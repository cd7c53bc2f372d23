"""The types of the arguments of `python -m benchmarks.simulate`."""

import argparse

from pydantic import ByteSize, TypeAdapter


def positive(text: str) -> float:
    """Return a number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0.")
    return number


def whole(text: str) -> int:
    """Return a whole number from 1 on."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1.")
    return number


def several(text: str) -> int:
    """Return a whole number from 2 on: a spread needs two values."""
    if (number := int(text)) < 2:
        raise argparse.ArgumentTypeError(f"{text} is less than 2.")
    return number


def wholes(text: str) -> list[int]:
    """Return whole numbers that are separated by commas."""
    return [whole(one) for one in text.split(",")]


def size(text: str) -> int:
    """Return a number of bytes that is written as 1GiB."""
    number = int(TypeAdapter(ByteSize).validate_python(text))
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than a byte.")
    return number


def sizes(text: str) -> list[int]:
    """Return numbers of bytes that are separated by commas."""
    return [size(one) for one in text.split(",")]
