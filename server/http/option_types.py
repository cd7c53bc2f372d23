"""The types of options that name origins and networks."""

from typing import Annotated

from pydantic import AfterValidator

from caravan.server.http.client_address import networks
from caravan.server.http.host_names import allowed_origins


def _origins(value: str | None) -> str | None:
    allowed_origins(value)
    return value


def _networks(value: str | None) -> str | None:
    try:
        networks(value)
    except ValueError:
        raise ValueError("must be addresses or networks such as 10.0.0.0/8, separated by commas") from None
    return value


Origins = Annotated[str | None, AfterValidator(_origins)]
Networks = Annotated[str | None, AfterValidator(_networks)]
