"""caravan inspect."""

from pathlib import Path
from typing import Annotated

import typer

from caravan.cli.fail import fail
from caravan.cli.model_argument import Model, resolved
from caravan.cli.serve_options import like_serve
from caravan.download.resolve import DEFAULT_MODEL


def inspect(model: Model = DEFAULT_MODEL, merge_lora: Annotated[str | None, like_serve("merge_lora")] = None) -> None:
    """Show a model's architecture, memory and unsupported features."""
    from caravan.cli.report import inspect_model, text_of

    path = resolved(model)
    try:
        typer.echo(text_of(inspect_model(path, None if merge_lora is None else Path(merge_lora))))
    except (ValueError, OSError) as error:
        fail(f"Cannot inspect {model}: {error}")
