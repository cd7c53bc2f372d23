"""caravan top."""

from typing import Annotated

import typer

from caravan.cli.fail import fail


def top(
    url: Annotated[str, typer.Option(help="Where the server is.", metavar="URL")] = "http://127.0.0.1:8000",
) -> None:
    """Watch the engine: batch, queue and KV pool. The key, if one is needed, is in CARAVAN_API_KEY."""
    from rich.console import Console

    from caravan.cli.engine_table import TopFailed, watch

    try:
        watch(url, Console())
    except TopFailed as error:
        fail(str(error))
    except KeyboardInterrupt:
        return
