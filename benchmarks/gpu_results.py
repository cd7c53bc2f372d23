"""Results of measurements, of which some may fail."""

from collections.abc import Iterable, Iterator
from typing import Any

MOST_CHARACTERS = 300  # of an error


def guarded(name: str, results: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield results; an exception among them is the last one, so that other measurements can follow."""
    try:
        yield from results
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        yield {"failed": name, "error": text[:MOST_CHARACTERS], "is_right": False}
