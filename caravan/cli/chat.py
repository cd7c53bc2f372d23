"""caravan chat."""

import sys
from typing import Annotated

import typer

from caravan.cli.model_argument import complete_fetched
from caravan.cli.own_key import own_key
from caravan.cli.server_url import DEFAULT_URL, Url


def chat(
    url: Url = DEFAULT_URL,
    model: Annotated[
        str | None,
        typer.Option(help="Model name. Default: the first that the server lists.", autocompletion=complete_fetched),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature; 0 always takes the most probable token.", min=0, max=2)
    ] = 0.2,
) -> None:
    """Chat with a running server.

    The variable CARAVAN_API_KEY holds the API key, if the server needs one.
    """
    from caravan.cli.terminal_chat import run_chat

    code = run_chat(
        url,
        model=model,
        system=system,
        temperature=temperature,
        api_key=own_key(),
        stdin=sys.stdin,
        stdout=sys.stdout,
        stderr=sys.stderr,
    )
    raise typer.Exit(code)
