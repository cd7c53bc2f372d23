"""caravan chat."""

import os
import sys
from contextlib import closing
from typing import Annotated, Any

import typer

from caravan.cli.fail import fail
from caravan.cli.model_argument import complete_model, resolved
from caravan.cli.own_key import own_key
from caravan.cli.server_url import DEFAULT_URL
from caravan.download.resolve import DEFAULT_MODEL


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A model as of `caravan serve`, or its name on the server. Default: the first that the server lists, "
            f"or {DEFAULT_MODEL}.",
            metavar="MODEL",
            autocompletion=complete_model,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help=f"Server address. Default: {DEFAULT_URL}, or a server that is started for the chat.", metavar="URL"
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Sampling temperature; 0 always takes the most probable token. Default: the model's.", min=0, max=2
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Give the same answer to the same question. Default: another each time.", min=0)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum length of an answer. Default: until the model ends it.", min=1)
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Show answers as they are written: Markdown.")] = False,
) -> None:
    """Chat with a model.

    A server that runs at the default address is used if it has the model.
    Otherwise the chat starts one of its own and stops it at the end. With
    --url it never starts one. The variable CARAVAN_API_KEY holds the API key,
    if the server needs one.

    \b
    Examples:
      caravan chat
      caravan chat org/name --temperature 0
      caravan chat --url http://gpu.example.org:8000
      echo 'What is a caravan?' | caravan chat
    """
    from caravan.cli.client import ChatClient, ChatFailed, KeyRefused
    from caravan.cli.conversation import AnswerOptions
    from caravan.cli.terminal_chat import run_chat

    options: dict[str, Any] = {
        "system": system,
        "options": AnswerOptions(temperature=temperature, seed=seed, max_tokens=max_tokens),
        "is_rendered": not plain and _can_render(),
        "stdin": sys.stdin,
        "stdout": sys.stdout,
        "stderr": sys.stderr,
    }
    if url is None:
        try:
            with closing(ChatClient(DEFAULT_URL, own_key())) as client:
                names = client.names()
            url = DEFAULT_URL if model is None or model in names else None
        except KeyRefused as error:
            fail(str(error))
        except ChatFailed:
            pass  # no server, or a program of another kind
    if url is not None:
        raise typer.Exit(run_chat(url, model=model, api_key=own_key(), **options))
    raise typer.Exit(_chat_with_own_server(model or DEFAULT_MODEL, options))


def _chat_with_own_server(model: str, options: dict[str, Any]) -> int:
    """Start a server, chat with it and stop it; return the exit code."""
    import httpx

    from caravan.cli.own_server import ServerFailed, own_server
    from caravan.cli.terminal_chat import run_chat

    resolved(model)  # fetches it, and shows the progress
    typer.echo(f"Starting {model} ...", err=True)
    try:
        with own_server(model) as path:
            return run_chat("http://localhost", transport=httpx.HTTPTransport(uds=str(path)), **options)
    except ServerFailed as error:
        fail(str(error))


def _can_render() -> bool:
    """Return whether Markdown can be drawn: in a terminal that moves its cursor and has the characters for it."""
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    return is_terminal and encoding == "utf8" and os.environ.get("TERM", "dumb") != "dumb"
