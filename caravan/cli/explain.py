"""caravan explain."""

from typing import Annotated

import typer

from caravan.cli.fail import fail
from caravan.cli.server_url import DEFAULT_URL, Url


def explain(
    name: Annotated[str, typer.Argument(help="Id of a response, or value of its x-request-id header.", metavar="ID")],
    url: Url = DEFAULT_URL,
) -> None:
    """Show how the time of a request was spent.

    The variable CARAVAN_API_KEY holds the API key, if the server needs one.
    """
    from caravan.cli.explanation import ExplainFailed, fetch_explanation, print_explanation
    from caravan.cli.tables import console

    try:
        print_explanation(fetch_explanation(url, name), console())
    except ExplainFailed as error:
        fail(str(error))
