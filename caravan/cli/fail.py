"""How a command fails: one line on standard error, and an exit code."""

from typing import NoReturn

import typer

FAILURE, USAGE_ERROR = 1, 2


def fail(message: str, code: int = FAILURE) -> NoReturn:
    """Print a message on standard error, as one line, and exit."""
    typer.echo(" ".join(message.split()), err=True)
    raise SystemExit(code)
