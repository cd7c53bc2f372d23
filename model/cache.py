"""Where fetched and built things are kept between runs."""

from collections.abc import Mapping
from pathlib import Path


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return our folder in the user's cache.

    A relative XDG_CACHE_HOME is to be ignored. Source: XDG Base Directory Specification 0.8.
    """
    cache = Path(environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "caravan"
