"""caravan pull."""

import typer

from caravan.cli.model_argument import Model, resolved
from caravan.download.resolve import DEFAULT_MODEL


def pull(model: Model = DEFAULT_MODEL) -> None:
    """Fetch a model into the cache and print its path.

    A fetched model is served without a network. `caravan list` shows the
    fetched models, `caravan rm` removes one.
    """
    typer.echo(resolved(model))
