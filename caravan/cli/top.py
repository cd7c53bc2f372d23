"""caravan top."""

from caravan.cli.fail import fail
from caravan.cli.server_url import DEFAULT_URL, Url


def top(url: Url = DEFAULT_URL) -> None:
    """Watch the engine: batch, queue and KV pool. The key, if one is needed, is in CARAVAN_API_KEY."""
    from rich.console import Console

    from caravan.cli.engine_table import TopFailed, watch

    try:
        watch(url, Console())
    except TopFailed as error:
        fail(str(error))
    except KeyboardInterrupt:
        return
