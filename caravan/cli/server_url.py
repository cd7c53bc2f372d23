"""The option --url of commands for a running server."""

from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option(help="Server address.", metavar="URL")]
