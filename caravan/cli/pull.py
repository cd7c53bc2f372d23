"""caravan pull."""

import typer

from caravan.cli.model_argument import Model, resolved
from caravan.download.resolve import DEFAULT_MODEL


def pull(model: Model = DEFAULT_MODEL) -> None:
    """Fetch MODEL so that a later start needs no network; print its path."""
    typer.echo(resolved(model))
