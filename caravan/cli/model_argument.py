"""The argument MODEL, and the file or folder that it stands for."""

from pathlib import Path
from typing import Annotated

import typer

from caravan.cli.fail import fail
from caravan.download.errors import ModelNotFound, ModelUnavailable
from caravan.download.resolve import resolve_model
from caravan.server.settings import Settings

Model = Annotated[str, typer.Argument(help=str(Settings.model_fields["model"].description))]


def resolved(model: str) -> Path:
    """Return where the model lies, fetched if need be; exits with a message if there is none."""
    try:
        return resolve_model(model, lambda line: typer.echo(line, err=True))
    except (ModelNotFound, ModelUnavailable) as error:
        fail(str(error))
