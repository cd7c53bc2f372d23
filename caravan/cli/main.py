"""The command line: a typer application with a function for each command."""

from typing import Annotated

import typer

from caravan import __version__
from caravan.cli.batch import batch
from caravan.cli.bench.main import bench
from caravan.cli.chat import chat
from caravan.cli.explain import explain
from caravan.cli.inspect import inspect
from caravan.cli.list_models import list_models
from caravan.cli.plan import plan
from caravan.cli.pull import pull
from caravan.cli.rm import rm
from caravan.cli.serve import serve
from caravan.cli.serve_options import SettingsCommand
from caravan.cli.top import top


def main() -> None:
    """Run the command named by the arguments of the process."""
    make_app()(prog_name="caravan")


def make_app() -> typer.Typer:
    """Return the application with all commands; its help is plain text of 80 columns."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback()(caravan)
    app.command(cls=SettingsCommand)(serve)
    app.command()(pull)
    app.command("list")(list_models)
    for command in (rm, inspect, plan, batch, chat, top, explain, bench):
        app.command()(command)
    return app


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"caravan {__version__}")
        raise typer.Exit


def caravan(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Inference server for Llama models with an OpenAI-compatible HTTP API.

    Exit codes: 0 success, 1 failure, 2 wrong arguments, 130 interrupted.
    """
