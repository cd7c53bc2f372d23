"""caravan chat."""

import sys
from typing import Annotated

import typer

from caravan.cli.server_url import DEFAULT_URL, Url


def chat(
    url: Url = DEFAULT_URL,
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
