"""The command line: `caravan serve`, `pull`, `inspect`, `plan`, `chat`, `bench`, `explain` and `top`."""

from typing import Annotated

import typer

from caravan import __version__
from caravan.cli.bench.main import bench
from caravan.cli.chat import chat
from caravan.cli.explain import explain
from caravan.cli.inspect import inspect
from caravan.cli.plan import plan
from caravan.cli.pull import pull
from caravan.cli.serve import serve, with_options
from caravan.cli.top import top


def main() -> None:
    """Run the command named by the arguments of the process."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(caravan)
    app.command()(with_options(serve))
    for command in (pull, inspect, plan, chat, bench, explain, top):
        app.command()(command)
    app()


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"caravan {__version__}")
        raise typer.Exit


def caravan(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """An inference server for Llama models: continuous batching, a paged KV cache, OpenAI-style HTTP."""
