"""caravan inspect."""

import typer

from caravan.cli.fail import fail
from caravan.cli.model_argument import Model, resolved
from caravan.download.resolve import DEFAULT_MODEL


def inspect(model: Model = DEFAULT_MODEL) -> None:
    """Show a model's architecture, memory and unsupported features."""
    from caravan.cli.report import inspect_model, text_of

    path = resolved(model)
    try:
        typer.echo(text_of(inspect_model(path)))
    except (ValueError, OSError) as error:
        fail(f"Cannot inspect {model}: {error}")
