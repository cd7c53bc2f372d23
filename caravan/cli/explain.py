"""caravan explain."""

from typing import Annotated

import typer

from caravan.cli.fail import fail
from caravan.cli.server_url import DEFAULT_URL, Url


def explain(
    name: Annotated[str, typer.Argument(help="Id of an answer, or of an exchange (x-request-id).", metavar="ID")],
    url: Url = DEFAULT_URL,
) -> None:
    """Say where the time of a request went. The key, if one is needed, is in CARAVAN_API_KEY."""
    from caravan.cli.explanation import ExplainFailed, fetch_story, print_story
    from caravan.cli.tables import console

    try:
        print_story(fetch_story(url, name), console())
    except ExplainFailed as error:
        fail(str(error))
