"""How a command fails: one line on standard error, and an exit code."""

from typing import NoReturn

import typer


def fail(message: str, code: int = 1) -> NoReturn:
    """Exit with a message; code 2 is for wrong arguments, 1 for everything else."""
    typer.echo(" ".join(message.split()), err=True)
    raise SystemExit(code)
