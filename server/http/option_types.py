"""The types of options that are written as text: origins, networks and durations."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from caravan.server.http.client_address import networks
from caravan.server.http.host_names import allowed_origins

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(value: object) -> object:
    """Return a duration such as 100ms, 0.1s, 10m or 0.1 in seconds."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|)", value.strip())
    if match is None:
        raise ValueError("must be a duration such as 100ms, 0.1s or 10m")
    return float(match[1]) * _UNIT_SECONDS[match[2]]


def _origins(value: str | None) -> str | None:
    allowed_origins(value)
    return value


def _networks(value: str | None) -> str | None:
    try:
        networks(value)
    except ValueError:
        raise ValueError("must be addresses or networks such as 10.0.0.0/8, separated by commas") from None
    return value


def _root_path(value: str) -> str:
    """Return a path without a slash at its end."""
    path = value.rstrip("/")
    if path and not re.fullmatch(r"(?:/[A-Za-z0-9._~-]+)+", path):
        raise ValueError("must be a path such as /llm, of letters, digits and -._~")
    return path


Origins = Annotated[str | None, AfterValidator(_origins)]
Networks = Annotated[str | None, AfterValidator(_networks)]
RootPath = Annotated[str, AfterValidator(_root_path)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
