"""caravan top."""

from caravan.cli.fail import fail
from caravan.cli.server_url import DEFAULT_URL, Url


def top(url: Url = DEFAULT_URL) -> None:
    """Show the engine live: batch, queue and KV cache. Ctrl-C ends it.

    The variable CARAVAN_API_KEY holds the API key, if the server needs one.
    """
    from rich.console import Console

    from caravan.cli.engine_table import TopFailed, watch

    try:
        watch(url, Console())
    except TopFailed as error:
        fail(str(error))
    except KeyboardInterrupt:
        return
