"""Why a model cannot be had, and how its fetching tells of itself."""

from collections.abc import Callable

Progress = Callable[[str], None]  # gets a line for people to read


class ModelNotFound(ValueError):
    """The MODEL argument names nothing; the text says what it may name."""


class ModelUnavailable(Exception):
    """The model exists, as far as we know, but it cannot be brought here; the text is one line with the way out."""
