"""caravan list."""

import json
import os
import time
from typing import Annotated

import typer

from caravan.cli.fail import fail
from caravan.cli.sizes import readable_size


def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="JSON output, with bytes, seconds and paths.")] = False,
) -> None:
    """List the fetched models.

    Other commands accept a NAME of this list as MODEL. Models come from
    Caravan's cache and from the Hugging Face cache, which other programs may
    share. KIND `packed` are weights as the kernels read them, kept by
    `caravan serve`, `kv blocks` what its --kv-spill keeps; their time is
    that of the last use.
    """
    from caravan.download.cached_models import cached_models, with_packed_weights

    try:
        models = with_packed_weights(cached_models(os.environ), os.environ)
    except OSError as error:
        fail(f"Cannot read the cache: {error}")
    if as_json:
        fields = ("name", "kind", "num_bytes", "fetched_at", "path")
        typer.echo(
            json.dumps([{name: getattr(model, name) for name in fields} for model in models], default=str, indent=1)
        )
        return
    if not models:
        typer.echo("No model is fetched yet. Fetch one with `caravan pull MODEL`.", err=True)
        return
    width = max(len("NAME"), *(len(model.name) for model in models))
    typer.echo(f"{'NAME':<{width}}  {'KIND':<11}  {'SIZE':>8}  FETCHED")
    for model in models:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(model.fetched_at))
        typer.echo(f"{model.name:<{width}}  {model.kind:<11}  {readable_size(model.num_bytes):>8}  {day}")
