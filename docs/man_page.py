"""Writes docs/caravan.1 from the help of the commands: python -m docs.man_page > docs/caravan.1."""

import inspect
from itertools import groupby
from operator import attrgetter
from typing import Any

from typer.main import get_command

from caravan import __version__
from caravan.cli.command_groups import GROUPS
from caravan.cli.main import make_app
from caravan.cli.serve_options import GENERAL, PRINT_CONFIG_FLAG, PRINT_CONFIG_HELP, serve_options

_UNWRAPPED = "\b\n"  # begins a paragraph whose lines stay as they are


def man_page() -> str:
    """Return the page in roff, with the macros of man(7)."""
    root: Any = get_command(make_app())
    summary, *more = _paragraphs(root.help)
    lines = [f'.TH CARAVAN 1 "" "caravan {__version__}" "User Commands"', ".SH NAME"]
    lines += [
        f"caravan \\- {_escaped(summary.rstrip('.'))}",
        ".SH SYNOPSIS",
        ".B caravan",
        "COMMAND [OPTIONS] [ARGUMENTS]",
    ]
    lines += [".SH DESCRIPTION", *_written(more), *_options(root)]
    for title, names in GROUPS.items():
        lines.append(f".SH {title.upper()}")
        for name in names:
            command = root.commands[name]
            lines += [f'.SS "{_escaped(_usage(name, command))}"', *_written(_paragraphs(command.help))]
            lines += _serve_options() if name == "serve" else _options(command)
    return "\n".join(lines) + "\n"


def _usage(name: str, command: Any) -> str:
    pieces = command.collect_usage_pieces(command.context_class(command))
    return " ".join(("caravan", name, *(piece.strip("{}") for piece in pieces)))


def _paragraphs(text: str) -> list[str]:
    return inspect.cleandoc(text).split("\n\n")


def _written(paragraphs: list[str]) -> list[str]:
    """Return paragraphs: their lines are filled, or kept if they begin so."""
    lines = []
    for paragraph in paragraphs:
        if paragraph.startswith(_UNWRAPPED):
            kept = paragraph.removeprefix(_UNWRAPPED).splitlines()
            lines += [".PP", ".nf", *map(_escaped, kept), ".fi"]
        else:
            lines += [".PP", _escaped(" ".join(paragraph.split()))]
    return lines


def _options(command: Any) -> list[str]:
    """Return the arguments and options of a command as its help has them."""
    context = command.context_class(command)
    records = [one.get_help_record(context) for one in command.params]
    return [line for name, text in records for line in _entry(name, text)]


def _serve_options() -> list[str]:
    """Return the options in their groups, with their variables, defaults and bounds."""
    lines = []
    for group, options in groupby(serve_options(), key=attrgetter("group")):
        if group != GENERAL:
            lines += [".PP", f".I {_escaped(group)}"]
        else:
            lines += _entry(PRINT_CONFIG_FLAG, PRINT_CONFIG_HELP)
        for option in options:
            lines += _entry(option.usage, f"{option.help}  [{option.notes}]")
    return lines


def _entry(name: str, text: str) -> list[str]:
    """Return an option; what stands in brackets at the end of its help is on a line of its own."""
    meaning, _, notes = text.partition("  [")
    return [".TP", f".B {_escaped(name)}", _escaped(meaning), *([".br", f"[{_escaped(notes)}"] if notes else [])]


def _escaped(line: str) -> str:
    """Return a line as roff shows it unchanged: hyphens can be copied, and no line is a request."""
    text = line.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{text}" if text.startswith((".", "'")) else text


if __name__ == "__main__":
    print(man_page(), end="")
