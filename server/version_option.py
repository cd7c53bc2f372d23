"""The option --version of the command line."""

from typing import Annotated

import typer

from caravan import __version__


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"caravan {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")]
