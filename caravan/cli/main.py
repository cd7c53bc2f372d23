"""The command line: a typer application, whose commands are imported when they are wanted."""

from typing import Annotated

import typer

from caravan import __version__
from caravan.cli.command_groups import CommandGroups
from caravan.cli.interrupts import raise_at_interrupt


def main() -> None:
    """Run the command named by the arguments of the process."""
    make_app()(prog_name="caravan")


def make_app() -> typer.Typer:
    """Return the application with all commands; its help is plain text of 80 columns."""
    app = typer.Typer(cls=CommandGroups, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback()(caravan)
    return app


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"caravan {__version__}")
        raise typer.Exit


def caravan(
    ctx: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Inference server for Llama models with an OpenAI-compatible HTTP API.

    Exit codes: 0 success, 1 failure, 2 wrong arguments, 130 interrupted.

    \b
    Examples:
      caravan chat                      chat with the default model
      caravan serve                     serve it on http://127.0.0.1:8000
      caravan serve org/name            serve a model of the Hugging Face Hub
    """
    if ctx.invoked_subcommand != "serve":  # which imports far more before it has anything to end
        raise_at_interrupt()
