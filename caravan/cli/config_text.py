"""Options of `caravan serve` as the text of a YAML file: all of them as an example, or those in force."""

import os
import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from typing import Any

import yaml
from pydantic import ByteSize

from caravan.cli.serve_options import ServeOption, serve_options
from caravan.server.settings import Settings, settings_sources

_COLUMNS = 100
_SECRETS = ("api_key",)
_HEAD = """\
# Options of `caravan serve`: caravan serve --config FILE
# Variables (CARAVAN_PORT) and options (--port) override this file.
"""


def config_example() -> str:
    """Return a file with every option and its description, each commented out and with its default."""
    lines = [_HEAD + "# Remove the first # of a line to set its option. An option without a value has its default."]
    for option, title in _options():
        lines += ["", f"# {title}"] if title else []
        lines += ["", *_described(option)]
        default = Settings.model_fields[option.name].default
        lines.append(f"#{_line(option.name, _plain(option.name, default))}")
    return "\n".join(lines) + "\n"


def config_in_force(settings: Settings, flags: Mapping[str, Any]) -> str:
    """Return a file with the options that are set, each with its origin, and the defaults of all others as comments.

    An API key is not part of it.
    """
    sources = settings_sources(settings, flags, os.environ)
    lines = [_HEAD + "# Options that are set have their origin behind them; the others have their defaults."]
    for option, title in _options():
        lines += ["", f"# {title}"] if title else []
        name = option.name
        if name in sources and name in _SECRETS:
            lines.append(f"#{name}:  # {sources[name]}, not shown")
        elif name in sources:
            lines.append(f"{_line(name, _plain(name, getattr(settings, name)))}  # {sources[name]}")
        else:
            lines.append(f"#{_line(name, _plain(name, getattr(settings, name)))}")
    return "\n".join(lines) + "\n"


def _options() -> Iterator[tuple[ServeOption, str]]:
    """Yield the options that a file can have, the first one of a group with the title of the group."""
    options = [option for option in serve_options() if option.name != "config"]
    for title, group in groupby(options, key=attrgetter("group")):
        for index, option in enumerate(group):
            yield option, "" if index else title


def _described(option: ServeOption) -> list[str]:
    """Return the description of an option, and its type and bounds, as comments."""
    notes = "; ".join(filter(None, (option.type.strip("<>") or "true or false", option.bounds)))
    return textwrap.wrap(
        f"{option.help} [{notes}]", _COLUMNS, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _plain(name: str, value: Any) -> Any:
    """Return a value of an option as YAML has it."""
    if isinstance(value, ByteSize) and (text := _readable(value)):
        return text
    shown = Settings.model_construct(**{name: value}).model_dump(mode="json", include={name}, warnings=False)
    return shown[name]


def _readable(size: ByteSize) -> str:
    """Return a size with a unit, such as 16GiB, or nothing if that is not exact."""
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if size and size % 2**power == 0:
            return f"{size >> power}{unit}"
    return ""


def _line(name: str, value: Any) -> str:
    if value is None:
        return f"{name}:"
    return yaml.safe_dump({name: value}, width=10_000, allow_unicode=True).strip()
