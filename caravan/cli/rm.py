"""caravan rm."""

import os
from pathlib import Path
from typing import Annotated

import typer

from caravan.cli.fail import fail
from caravan.cli.model_argument import complete_fetched
from caravan.cli.sizes import readable_size

_PARTS = {"packed": "packed weights", "kv blocks": "cached blocks"}


def rm(
    name: Annotated[
        str,
        typer.Argument(
            help="Name that `caravan list` shows; org/name stands for all models of that repository. "
            "Of a path only packed weights and cached blocks are removed.",
            metavar="NAME",
            autocompletion=complete_fetched,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Remove a fetched model from the cache.

    Its packed weights and cached blocks are removed, too. Only the caches that `caravan list`
    shows are touched, never a file or a folder of your own.
    """
    from caravan.download.cached_models import (
        cached_models,
        models_named,
        packed_weights,
        remove_models,
        with_packed_weights,
    )
    from caravan.download.errors import ModelNotFound

    try:
        models = with_packed_weights(models_named(cached_models(os.environ), name), os.environ, only_theirs=True)
    except ModelNotFound as error:
        models = packed_weights(Path(name), os.environ)
        if not models and Path(name).exists():
            fail(f"{name} is a path. `caravan rm` removes fetched models, by the names `caravan list` shows.")
        if not models:
            fail(str(error))
    except OSError as error:
        fail(f"Cannot read the cache: {error}")
    if not yes:
        for model in models:
            typer.echo(f"{model.name}  {readable_size(model.num_bytes)}  {model.path}", err=True)
        if not _is_confirmed():
            fail("Nothing was removed.")
    try:
        num_bytes = remove_models(models)
    except OSError as error:
        fail(f"Cannot remove {name}: {error}")
    names = dict.fromkeys(model.name for model in models if model.kind not in _PARTS)
    parts = dict.fromkeys(_PARTS[model.kind] for model in models if model.kind in _PARTS)
    removed = ", ".join(names) or f"the {' and '.join(parts)} of {name}"
    typer.echo(f"Removed {removed}, which frees {readable_size(num_bytes)}.")


def _is_confirmed() -> bool:
    try:
        return typer.confirm("Remove?", err=True)
    except typer.Abort:  # Ctrl-C, or the end of the input
        typer.echo(err=True)
        return False
