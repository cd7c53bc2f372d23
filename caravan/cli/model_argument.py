"""The argument MODEL: its completion in a shell, and the file or folder that it stands for."""

import os
from pathlib import Path
from typing import Annotated

import typer

from caravan.cli.fail import fail
from caravan.download.errors import ModelNotFound, ModelUnavailable
from caravan.download.resolve import ALIASES, resolve_model
from caravan.server.settings import Settings


def complete_fetched(incomplete: str) -> list[str]:
    """Return the names of fetched models that begin with a word."""
    from caravan.download.cached_models import cached_models

    try:
        names = [model.name for model in cached_models(os.environ)]
    except OSError:  # a shell can only offer nothing
        return []
    return [name for name in names if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """Return the aliases and the names of fetched models that begin with a word; the shell adds files."""
    aliases = [name for name in ALIASES if name.startswith(incomplete)]
    return list(dict.fromkeys([*aliases, *complete_fetched(incomplete)]))


Model = Annotated[
    str,
    typer.Argument(
        help=str(Settings.model_fields["model"].description), metavar="MODEL", autocompletion=complete_model
    ),
]


def resolved(model: str) -> Path:
    """Return the path of a model, which is fetched if need be; exits with a message if there is none."""
    try:
        return resolve_model(model, lambda line: typer.echo(line, err=True))
    except (ModelNotFound, ModelUnavailable) as error:
        fail(str(error))
