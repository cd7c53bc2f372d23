"""Errors of fetching a model, and the callback for its progress."""

from collections.abc import Callable

Progress = Callable[[str], None]  # gets one line


class ModelNotFound(ValueError):
    """The MODEL argument names no model; the text is one line that says what it may name."""


class ModelUnavailable(Exception):
    """The model cannot be fetched or stored; the text is one line with the way out."""
