"""caravan chat."""

import sys
from typing import Annotated

import typer


def chat(
    url: Annotated[str, typer.Option(help="Where the server is.", metavar="URL")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Name of the model. Default: the server's first.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest word, 2 is wild.", min=0, max=2)] = 0.2,
) -> None:
    """Talk with a running server."""
    from caravan.cli.terminal_chat import run_chat

    code = run_chat(
        url, model=model, system=system, temperature=temperature, stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr
    )
    raise typer.Exit(code)
